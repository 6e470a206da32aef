"""`check_tracker`: whether what ``--report-to`` names can be reported to, known before anything runs."""

from __future__ import annotations

from importlib.util import find_spec

from foreword.errors import SettingError

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "comet_ml": ("comet_ml",),
    "swanlab": ("swanlab",),
    "clearml": ("clearml",),
    "dvclive": ("dvclive",),
    "neptune": ("neptune",),
}
"""Trackers of the Transformers Trainer, and the packages of which each needs one."""


def check_tracker(name: str) -> None:
    """Raise SettingError for a tracker that there is not, or whose package is not installed."""
    if name == "none":
        return
    if name not in PACKAGES:
        raise SettingError("report_to", f"--report-to {name} is no tracker; choose none, {', '.join(PACKAGES)}.")
    if not any(find_spec(package) for package in PACKAGES[name]):
        package = PACKAGES[name][0]
        raise SettingError("report_to", f"--report-to {name} needs a package; run `pip install {package}`.")
