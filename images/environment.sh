# Sourced by the Dockerfile's RUN lines: how packages are installed, with the builder's own index settings and CA certificates.
# Byte code is made now and never compared with its source later: in a running image nobody can write either.
export VIRTUAL_ENV=/opt/fedhelp UV_CACHE_DIR=/cache UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH
if [ -s /run/secrets/index ]; then # lines of NAME=value
  set -a
  . /run/secrets/index
  set +a
fi
if [ -s /run/secrets/certificates ]; then
  export SSL_CERT_FILE=/run/secrets/certificates PIP_CERT=/run/secrets/certificates
fi

install_locked() { # LIST: exactly what it pins, without what is never loaded
  /tools/bin/uv pip install --quiet --no-deps --require-hashes -r "$1" && without_what_is_never_loaded
}

# The packages' own test suites; headers, static libraries and protoc, for a compiler that is not there; AWS services other than S3 and its logins.
without_what_is_never_loaded() {
  packages=$(echo "$VIRTUAL_ENV"/lib/python3.*/site-packages)
  find "$packages" -type d \( -name tests -o -path '*/torch/include' -o -path '*/nvidia/*/include' \
    -o -regex '.*/botocore/data/[^/]*' ! -regex '.*/botocore/data/\(s3\|sts\|sso\|sso-oidc\|signin\)' \) -prune -exec rm -r {} + &&
    find "$packages" \( -name '*.a' -o -path '*/torch/bin/protoc*' \) -delete
}

install_torch_for_cpu() { # the locked version from the index of CPU builds and no other; the lock has no hash of its files
  env -u UV_INDEX -u UV_EXTRA_INDEX_URL /tools/bin/uv pip install --quiet --no-deps --default-index "${TORCH_INDEX:?PyTorch's index of CPU builds}" \
    "$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' /images/silo/torch.txt)" && without_what_is_never_loaded
}

install_wheel() { # WHEEL: ours
  /tools/bin/uv pip install --quiet --offline --no-cache --no-deps "$1"
}
