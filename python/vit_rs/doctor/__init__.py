"""What `vit-rs doctor` measures on a user's own images."""

from vit_rs.doctor.examination import examine
from vit_rs.doctor.files import open_files
from vit_rs.doctor.report import Report

__all__ = ["Report", "examine", "open_files"]
