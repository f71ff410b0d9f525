"""The workflow as a user runs it: real snakemake processes at scale smoke, in a copy."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COPIED = ("lib", "workflow", "experiments", "figures", "config", "profiles", "published")
pytestmark = [pytest.mark.workflow, pytest.mark.timeout(900)]


class Clone:
    """A copy of the repository, with its own results; downloads are shared with the original."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in COPIED:
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, root / name, ignore=ignore)
        for name in ("Snakefile", "CITATION.cff"):
            shutil.copy(ROOT / name, root)
        (root / "models").symlink_to(ROOT / "models")
        (ROOT / "data/downloads").mkdir(parents=True, exist_ok=True)
        (root / "data").mkdir()
        (root / "data/downloads").symlink_to(ROOT / "data/downloads")

    def snakemake(self, *arguments: str, offline: bool = False) -> subprocess.CompletedProcess:
        # The copy's library, so that a change in it is a change in what runs.
        env = {**os.environ, "PYTHONPATH": str(self.root / "lib")}
        env.pop("SNAKEMAKE_PROFILE", None)
        if offline:
            env |= {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
            env |= dict.fromkeys(("http_proxy", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
        return subprocess.run(
            [sys.executable, "-m", "snakemake", "-c2", *arguments],
            cwd=self.root,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )

    def planned(self, *arguments: str) -> dict[str, int]:
        """Jobs of a dry run, by rule."""
        done = self.snakemake("--dry-run", *arguments, offline=True)
        assert done.returncode == 0, done.stderr
        # Rule name and count, below the heading; the table may be printed twice.
        rows = re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE)
        return {rule: int(count) for rule, count in rows if rule not in ("all", "total")}

    @contextmanager
    def changed(self, name: str, old: str, new: str) -> Iterator[None]:
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        try:
            yield
        finally:
            path.write_text(text)

    def files(self) -> set[Path]:
        return {
            path.relative_to(self.root)
            for folder in ("results", "data")
            for path in (self.root / folder).rglob("*")
            if path.is_file() and "downloads" not in path.parts
        }


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A copy in which the whole of scale smoke has been built."""
    clone = Clone(tmp_path_factory.mktemp("smoke"))
    done = clone.snakemake("--config", "scale=smoke")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return clone


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A copy in which nothing has been built."""
    return Clone(tmp_path_factory.mktemp("fresh"))


SMOKE = ("--config", "scale=smoke")
SCALES = ("smoke", "mini", "desk", "paper")


def test_whole_run(smoke: Clone) -> None:
    results = smoke.root / "results/smoke"
    assert (results / "report/index.html").stat().st_size > 10_000
    assert (results / "comparison.csv").read_text().startswith("id,paper,where,what,kind,")
    for name in ("fig3", "fig6", "fig12", "fig29", "structure", "training"):
        assert (results / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (results / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    for name in (
        "table1",
        "table3",
        "table4",
        "top_tokens",
        "gap_tokens",
        "estimators",
        "spectral",
    ):
        assert (results / f"tables/{name}.html").read_text().startswith("<table")
        assert (results / f"report/tables/{name}.csv").exists()
    pages = ("bimodal_search", "what_chi_is_made_of", "estimators", "spectral")
    for name in ("fig1", "fig8", "fig32", *pages):
        page = (results / f"report/pages/{name}.html").read_text()
        assert page.startswith("<!doctype html>") and "<script" not in page
    assert not list(results.rglob(".*.parts")), "nothing half-done is left"


def test_every_claim_of_a_finished_paper_is_measured_or_says_why_not(smoke: Clone) -> None:
    text = (smoke.root / "results/smoke/comparison.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(io.StringIO(text))
    papers = [row for row in rows if row["paper"] in ("baker2025", "arditi2026")]
    assert len(papers) > 40
    for row in papers:
        # A reason of the section's own, not that nothing regenerates the claim.
        if row["verdict"] == "not run":
            assert not re.search(r"regenerates? it|not built", row["reason"]), row["id"]


def test_every_rule_has_log_and_benchmark(smoke: Clone) -> None:
    results = smoke.root / "results/smoke"
    logs = {path.stem for path in (results / "logs").glob("*.log")}
    benchmarks = {path.stem for path in (results / "benchmarks").glob("*.tsv")}
    assert {"tokens", "model", "sample_000000", "compare"} <= logs
    assert logs == benchmarks


def test_second_run_does_nothing(smoke: Clone) -> None:
    done = smoke.snakemake(*SMOKE)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stderr + done.stdout
    assert smoke.planned(*SMOKE) == {}


def test_library_change_reruns_what_depends_on_it(smoke: Clone) -> None:
    with smoke.changed("lib/susceptibilities/structure.py", "from __future__", "\nfrom __future__"):
        planned = smoke.planned(*SMOKE)
    assert planned["structure_scores"] == 1
    assert not planned.keys() & {"corpus", "tokens", "model", "sample"}
    with smoke.changed("lib/susceptibilities/posterior.py", "from __future__", "\nfrom __future__"):
        planned = smoke.planned(*SMOKE)
    assert planned["sample"] == 4
    assert not planned.keys() & {"corpus", "tokens", "model"}
    assert smoke.planned(*SMOKE) == {}


def test_setting_change_reruns_what_depends_on_it(smoke: Clone) -> None:
    scale = "config/smoke.yaml"
    with smoke.changed(scale, "n_beta: 30", "n_beta: 29"):
        planned = smoke.planned(*SMOKE)
    assert planned["sample"] == 4
    assert not planned.keys() & {"corpus", "tokens", "model"}
    with smoke.changed(scale, "draws: 3", "draws: 2"):  # of the per-token chains
        planned = smoke.planned(*SMOKE)
    assert planned["per_token_sample"] == 4
    assert not planned.keys() & {"tokens", "sample", "ablation", "trajectory_pca"}
    with smoke.changed(scale, "checkpoints: [0, ", "checkpoints: [0, 80, "):
        planned = smoke.planned(*SMOKE)
    assert planned["sample"] == 1, "only the new checkpoint is sampled"
    assert not planned.keys() & {"corpus", "tokens"}
    with smoke.changed(scale, "scale: smoke", "scale: smoke # a comment"):
        assert smoke.planned(*SMOKE) == {}
    assert smoke.planned(*SMOKE) == {}


def test_check_is_an_exit_code(smoke: Clone) -> None:
    done = smoke.snakemake("check", *SMOKE)
    log = (smoke.root / "results/smoke/logs/check.log").read_text()
    assert (done.returncode == 0) == log.startswith("no claim fails or differs"), log


def test_paper_scale_dry_run_needs_no_network(fresh: Clone) -> None:
    done = fresh.snakemake("--dry-run", "--config", "scale=paper", offline=True)
    assert done.returncode == 0, done.stderr
    planned = fresh.planned("--config", "scale=paper")
    assert planned["sample"] == 30
    assert planned["per_token_sample"] == 2 * 17
    done = fresh.snakemake("plan", "--config", "scale=paper", offline=True)
    text = (fresh.root / "results/paper/logs/plan.log").read_text()
    assert done.returncode == 0
    assert "georgeyw/L2W256-3m-rr" in text
    assert "timaeus/pile-freelaw" in text


def test_targets_of_the_readme_are_those_that_there_are(fresh: Clone) -> None:
    rows = re.findall(
        r"^\| (`.*) \| .* \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    rows = [row for row in rows if row[0] not in [f"`{scale}`" for scale in SCALES]]
    targets = {name for row in rows for cell in row for name in re.findall(r"`(\w+)`", cell)}
    assert len(targets) > 40
    fresh.planned(*sorted(targets), *SMOKE)
    files = [*(ROOT / "workflow").glob("*.smk"), *(ROOT / "experiments").glob("*/*/rules.smk")]
    text = "\n".join(path.read_text() for path in files)
    sections = set(re.findall(r'^section\(\s*"(\w+)"', text, re.MULTILINE))
    # What this one registers is the page, which has a row.
    assert sections - targets == {"chi_page"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "scale=nano"], "'nano' is unknown; allowed: desk, mini, paper, smoke"),
        (["--config", "draws=3"], "--config draws: unknown; allowed: scale=NAME"),
        (["--config", "config_file=none.yaml"], "none.yaml does not exist"),
        (["fig99", *SMOKE], "fig99"),
    ],
)
def test_unknown_scale_setting_or_target(fresh: Clone, arguments: list[str], message: str) -> None:
    before = fresh.files() | {Path("results/smoke/config.json")}
    done = fresh.snakemake(*arguments)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert message in output
    assert "pydantic" not in output
    assert "Traceback" not in output
    assert fresh.files() <= before


def test_own_text_that_is_too_small(fresh: Clone) -> None:
    """A copied scale file with a folder of one's own; the text does not suffice."""
    folder = fresh.root / "my-text"
    folder.mkdir()
    for domain in ("letters", "recipes"):
        with gzip.open(folder / f"{domain}.jsonl.gz", "wt") as file:
            for number in range(200):
                file.write(
                    json.dumps({"text": f"{domain} {number} " + "words and more " * 20}) + "\n"
                )
    scale = yaml.safe_load((fresh.root / "config/smoke.yaml").read_text())
    scale["scale"] = "mine"
    scale["corpus"] = {"name": "my-text", "kind": "folder", "path": "my-text"}
    scale["two_layer"]["base_contexts"] = 500
    (fresh.root / "mine.yaml").write_text(yaml.safe_dump(scale))
    own = ("--config", "config_file=mine.yaml")
    done = fresh.snakemake("results/mine/tokens/manifest.json", *own)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert re.search(
        r"error: .*domain 'letters' is too small.* has \d+ contexts.*needed 500", output
    )
    assert "Traceback" not in output
    assert not list((fresh.root / "results/mine").rglob("*.npy"))
    scale["two_layer"].update(base_contexts=10, sgld_contexts=10)
    # The loss sets of the spectral estimator would need more.
    scale["two_layer"]["per_token"]["spectral"] = None
    (fresh.root / "mine.yaml").write_text(yaml.safe_dump(scale))
    done = fresh.snakemake("results/mine/tokens/manifest.json", *own)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((fresh.root / "results/mine/tokens/manifest.json").read_text())
    assert manifest["domains"].keys() == {"letters", "recipes"}
    assert manifest["arrays"]["base"]["contexts"] == 10
