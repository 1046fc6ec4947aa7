"""The files that launch the recipes' programs: valid by their scheduler's rules, and they call what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from clustering.run import RECIPES

LAUNCHERS = [*sorted(RECIPES.glob("*.sbatch")), RECIPES / "torchrun.sh", RECIPES / "kubernetes.yaml"]
SCHEMAS = ["1.31", "1.34"]
CALL = re.compile(r"\b(\w+\.py)((?: +(?:\"[^\"]*\"|[^\s&\"]+))*)")


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text(encoding="utf-8")))


def commands_in(launcher: Path) -> str:
    """Return what a launcher gives to a shell."""
    if launcher.suffix == ".yaml":
        specs = [each["spec"]["template"]["spec"] for each in documents() if each["kind"] == "Job"]
        return "\n".join(container["args"][0] for spec in specs for container in spec["containers"])
    lines = launcher.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("version", SCHEMAS)
@pytest.mark.parametrize("number", range(3))
def test_the_kubernetes_objects_are_valid(version: str, number: int) -> None:
    """By the schema of the Kubernetes version, which allows no key that it does not know."""
    kubernetes_validate.validate(documents()[number], version, strict=True)


def test_a_wrong_key_is_found() -> None:
    """The test above sees one."""
    job = documents()[1]
    job["spec"]["backoffLimitPerIndexes"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, SCHEMAS[0], strict=True)


@pytest.mark.parametrize("number", [1, 2])
def test_an_attempt_proves_that_the_pod_before_has_ended(number: int) -> None:
    """Pods are replaced once they have ended, never restarted in place, and both of an index's counts are added up."""
    spec = documents()[number]["spec"]
    assert (spec["podReplacementPolicy"], spec["template"]["spec"]["restartPolicy"]) == ("Failed", "Never")
    (container,) = spec["template"]["spec"]["containers"]
    assert {each["name"] for each in container["env"]} == {"FAILED", "IGNORED"}
    assert "--attempt=$((FAILED + IGNORED))" in container["args"][0]


@pytest.mark.parametrize("counts", [("", ""), ("0", ""), ("1", "2")])
def test_an_annotation_that_is_missing_counts_as_none(counts: tuple[str, str]) -> None:
    """Kubernetes sets the variable of a missing annotation to nothing."""
    environment = dict(zip(("FAILED", "IGNORED"), counts, strict=True))
    done = subprocess.run(
        ["bash", "-c", "echo $((FAILED + IGNORED))"], env=environment, capture_output=True, check=True, timeout=60
    )
    assert int(done.stdout) == sum(int(count or 0) for count in counts)


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda path: path.name)
def test_a_launcher_calls_programs_that_are_there_with_options_that_they_take(launcher: Path) -> None:
    calls = CALL.findall(commands_in(launcher))
    assert calls
    for program, arguments in calls:
        helped = subprocess.run(
            [sys.executable, program, "--help"], cwd=RECIPES, capture_output=True, text=True, check=True, timeout=60
        ).stdout
        for option in re.findall(r"--[a-z-]+", arguments):
            assert option in helped, f"{launcher.name}: {program} {option}"


@pytest.mark.parametrize("launcher", [path for path in LAUNCHERS if path.suffix != ".yaml"], ids=lambda path: path.name)
def test_a_shell_script_is_one(launcher: Path) -> None:
    subprocess.run(["bash", "-n", str(launcher)], check=True, timeout=60)
