"""An S3 server that has users and judges them by the bucket's policy: Versity's gateway over a folder, as a process of this machine."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import boto3

from tests.cluster.build import binary
from tests.cluster.processes import Processes, free_ports

_SECRET = "secret-of-{user}"
_OWNER = "owner"


class Gateway:
    """One server with one bucket, which lives inside `with`; who is nobody's user owns the bucket."""

    def __init__(self, folder: Path, bucket: str) -> None:
        self._folder = folder
        self._processes = Processes(folder / "processes")
        self._port = free_ports(1)[0]
        self.bucket = bucket
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        folders = {name: self._folder / name for name in ("objects", "metadata", "users")}
        for folder in folders.values():
            folder.mkdir()
        owner = {"ROOT_ACCESS_KEY": _OWNER, "ROOT_SECRET_KEY": _SECRET.format(user=_OWNER)}
        self._processes.start("versitygw", [
            binary("versitygw"), "--quiet", "--port", f"127.0.0.1:{self._port}", "--iam-dir", folders["users"],
            "posix", "--sidecar", folders["metadata"], folders["objects"]], owner)
        self._processes.wait("versitygw", self._answers, 30)
        self._client().create_bucket(Bucket=self.bucket)
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.stop_all()

    def credentials(self, user: str = _OWNER) -> dict[str, str]:
        """A user's, as environment variables."""
        return {"AWS_ACCESS_KEY_ID": user, "AWS_SECRET_ACCESS_KEY": _SECRET.format(user=user), "AWS_REGION": "us-east-1"}

    def add_user(self, user: str) -> None:
        """Somebody with a key pair and, so far, no right."""
        subprocess.run(
            [binary("versitygw"), "admin", "--access", _OWNER, "--secret", _SECRET.format(user=_OWNER), "--endpoint-url", self.endpoint,
             "create-user", "--access", user, "--secret", _SECRET.format(user=user), "--role", "user"], check=True, capture_output=True, timeout=60)

    def allow(self, policies: Mapping[str, Sequence[dict[str, Any]]]) -> None:
        """The bucket's policy: for each user the statements of a policy of its own."""
        statements = [
            {**one, "Sid": f"{one['Sid']}{number}", "Principal": {"AWS": [user]}} for number, user in enumerate(policies) for one in policies[user]]
        self._client().put_bucket_policy(Bucket=self.bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))

    def _client(self) -> Any:
        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id=_OWNER, aws_secret_access_key=_SECRET.format(user=_OWNER))

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=1).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True
