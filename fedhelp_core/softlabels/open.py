"""The client for every kind of teacher: the place where a new kind is added. Called by `prefetch`."""

from __future__ import annotations

from fedhelp_core.config.teachers import TeacherConfig
from fedhelp_core.softlabels.openinference import OpenInferenceTeacher
from fedhelp_core.softlabels.teachers import MlflowTeacher, Teacher


def open_teacher(config: TeacherConfig) -> Teacher:
    """The client for `config.kind`; nothing is contacted or loaded before it is prepared.

    Raises:
        ConfigError: the address, the CA file or the environment's proxy cannot be used.
    """
    return MlflowTeacher(config) if config.kind == "mlflow" else OpenInferenceTeacher(config)
