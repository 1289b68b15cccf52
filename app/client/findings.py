"""What `doctor` says about its findings."""

from collections.abc import Iterable
from dataclasses import asdict

import orjson
import typer

from app.client.doctor import Finding

_MARKS = {"ok": "ok     ", "warning": "warning", "broken": "BROKEN "}


def show_findings(findings: Iterable[Finding], *, as_json: bool) -> bool:
    """Print each as it comes, or all as one JSON object; whether nothing is broken."""
    found = []
    for finding in findings:
        found.append(finding)
        if not as_json:
            typer.echo(f"{_MARKS[finding.verdict]}  {finding.check:<9} {finding.says}")
            if finding.fix is not None:
                typer.echo(f"{'':18} -> {finding.fix}")
    is_sound = all(finding.verdict != "broken" for finding in found)
    if as_json:
        typer.echo(orjson.dumps({"ok": is_sound, "checks": [asdict(finding) for finding in found]}).decode())
    return is_sound
