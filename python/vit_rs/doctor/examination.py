"""The examination, part by part, so that an interrupted one has told what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_rs.data.threads import usable_cpus
from vit_rs.doctor.damage import Damage, look_for_damage
from vit_rs.doctor.parity import compare
from vit_rs.doctor.speed import Speed, measure, thread_counts
from vit_rs.doctor.survey import survey

if TYPE_CHECKING:
    from vit_rs.doctor.files import Files
    from vit_rs.doctor.report import Progress, Report

__all__ = ["examine"]


def examine(
    files: Files, report: Report, *, full: bool, seconds: float, threads: int | None, progress: Progress
) -> None:
    """Examine `files`, and note in `report` what is found, as soon as it is.

    Args:
        files: what is examined.
        report: is filled in.
        full: decode every image completely.
        seconds: about how long speed is measured.
        threads: most threads that are tried; None = the usable CPUs.
        progress: is told how far it has come.
    """
    report.survey = survey(files, progress)
    report.parity = compare(files, progress)
    most = threads or usable_cpus()
    report.speed = Speed()
    measure(files, report.speed, thread_counts(most), seconds, progress)
    if full:
        report.damage = Damage()
        look_for_damage(files, report.damage, most, progress)
    report.finished = True
