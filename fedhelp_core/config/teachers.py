"""Who is asked about which public images, and at what price: the `public_set` section of federation.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from fedhelp_core.config.section import Section, SiloName


class TeacherAuth(Section):
    """How to log in at a teacher. The secret itself is never in this file: it is read from the environment or a mounted file."""

    kind: Literal["bearer", "basic"]
    """'bearer': a token; 'basic': user name and password."""
    env: str | None = Field(None, min_length=1)
    """Environment variable that holds the token or password."""
    file: Path | None = None
    """File that holds it, e.g. of a mounted Secret; read for every request, so it may be rotated."""
    username: str | None = Field(None, min_length=1)
    """basic: user name; null: the secret is 'user:password'."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("env: give either env or file, the place of the secret")
        if self.kind == "bearer" and self.username is not None:
            raise ValueError("username: belongs to kind 'basic', got kind 'bearer'")
        return self


class TeacherBudget(Section):
    """What a teacher costs and may cost, over all runs that share a store."""

    price_per_image: float = Field(0.0, ge=0)
    """Money per image asked, in `currency`."""
    price_per_request: float = Field(0.0, ge=0)
    """Money per request, in `currency`."""
    currency: str = Field("EUR", min_length=1, max_length=8)
    """For messages and reports."""
    max_cost: float | None = Field(None, ge=0)
    """Stop before more than this is spent; null: no cap."""
    max_requests: int | None = Field(None, ge=0)
    """Stop before more requests than this are sent; null: no cap."""

    @model_validator(mode="after")
    def _cap_needs_a_price(self) -> Self:
        if self.max_cost is not None and self.price_per_image == self.price_per_request == 0:
            raise ValueError("max_cost: needs price_per_image or price_per_request, or nothing is ever spent")
        return self


class TeacherConfig(Section):
    """One foundation model behind an API, asked once per public image."""

    name: SiloName
    """Name in the ledger and in reports."""
    kind: Literal["mlflow", "openinference"] = "mlflow"
    """'mlflow': a pyfunc model, loaded here. 'openinference': a server that speaks Open Inference Protocol v2."""
    uri: str
    """MLflow model URI (models:/… or a folder), or http(s)://host/v2/models/<model>."""
    version: str = "1"
    """Asked again only when this, `image_size` or `prompts` changes."""
    classes: int = Field(ge=1)
    """C_pub: number of probabilities per image; of masks per pixel, background first (1: the foreground's alone)."""
    image_size: int | None = Field(None, ge=8, le=1024)
    """Side in pixels of the images that it is asked about; null: `task.image_size`, which masks keep to."""
    prompts: tuple[str, ...] = ()
    """Zero-shot prompts that the server was set up with, one per class; also the classes' names."""
    output: Literal["probabilities", "logits"] = "probabilities"
    """What it answers with."""
    output_name: str | None = None
    """openinference: which output tensor; null: the model's only one."""
    weight: float = Field(1.0, gt=0)
    """Share in the mix of teachers; shares are normalised to sum 1."""
    batch_size: int = Field(64, ge=1, le=4096)
    """Images per request; fewer where the server says that it takes fewer."""
    transport: Literal["auto", "binary", "json"] = "auto"
    """openinference: tensors as bytes or JSON; 'auto': bytes if the server lists the extension (KServe takes them unlisted)."""
    concurrency: int = Field(4, ge=1, le=64)
    """Requests in flight at once, over all shards."""
    requests_per_second: float | None = Field(None, gt=0)
    """Rate limit over all shards; null: none."""
    timeout: float = Field(60.0, gt=0, le=3600)
    """Seconds for one whole request, from connecting to the answer's last byte."""
    retries: int = Field(6, ge=0, le=100)
    """Further tries of a request after 429, 5xx or a timeout."""
    budget: TeacherBudget = TeacherBudget()
    auth: TeacherAuth | None = None
    """openinference: how to log in."""
    ca_file: Path | None = None
    """openinference: PEM file of the authority that signed the server's certificate."""

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        problems = []
        if self.prompts and len(self.prompts) != self.classes:
            problems.append(f"prompts: one per class expected ({self.classes}), got {len(self.prompts)}")
        if self.kind == "openinference" and "@" in self.uri.partition("://")[2].partition("/")[0]:
            problems.append("uri: carries credentials, which must not be in this file; use auth")
        if self.kind == "mlflow" and (self.auth or self.ca_file or self.output_name):
            problems.append("kind: 'mlflow' takes no auth, ca_file or output_name (MLflow's own variables log in); did you mean 'openinference'?")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class PublicSetConfig(Section):
    """The unlabelled public images that teachers are asked about."""

    images: Path
    """Folder or file, see `layout`."""
    layout: Literal["folder", "cifar10", "cifar100", "tar", "datalist"] = "folder"
    """'folder': JPEG/PNG files (of volumes: NIfTI), searched recursively; 'tar': .tar or .tar.gz of such files.
    'cifar10', 'cifar100': their binary versions (.bin); 'datalist': a JSON file with lists of {image}."""
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1)
    shards: int = Field(1, ge=1, le=64)
    """Pipeline tasks that ask side by side, each about its share of the images."""
