# Every result of the papers, section by section. `snakemake -c2 plan` says what a run would do.
#
# How it is put together: this file reads and checks the scale, includes the shared rules
# (workflow/*.smk) and every section's own (experiments/<paper>/<section>/rules.smk), and makes
# the targets. A section adds itself with `section(...)` below; nothing here names one.
#
# Names for rules, in every included file:
#   R, SCALE, CONFIG             results folder, checked scale, its JSON file (`ancient(CONFIG)`)
#   STEPS, LOSSES, CONTROLS      checkpoint steps; the sampled losses of each, and the controls'
#   TOKENS, MODEL, MODEL_JSON    the tokens' manifest, the model's folder and description
#   PY                           the Python that runs Snakemake
#   code("a/script.py", "pca")   for `params`: reruns the rule when this code, or what it imports
#                                from the package, changes
#   settings("two_layer.seed")   for `params`: reruns the rule when these settings change
#   fig("fig6"), table("table1"), page("fig8")
#                                the files of a figure, a table, a page of highlighted text
#   section(...)                 registers a section's targets
#   PER_TOKEN                    files of the per-token susceptibilities, see workflow/per_token.smk
import json
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from susceptibilities.codehash import code_hash
from susceptibilities.config import (
    ConfigError,
    domain_names,
    load_scale,
    package_corpus,
    setting,
)
from susceptibilities.store import read_json, write_json
from susceptibilities.tokens import CONTROL_PROBE

if unknown := set(config) - {"scale", "config_file"}:
    raise WorkflowError(
        f"--config {', '.join(sorted(unknown))}: unknown; allowed: scale=NAME, config_file=PATH. "
        "Other settings belong in a scale file: copy one of config/*.yaml and change it."
    )
try:
    SCALE = load_scale(str(config.get("scale", "mini")), config.get("config_file"))
    DOMAINS = domain_names(SCALE.corpus)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

NORMALISED = SCALE.normalised()
R = f"results/{SCALE.scale}"
CONFIG = f"{R}/config.json"
CORPUS = f"data/{SCALE.corpus.name}/manifest.json"
TOKENS = f"{R}/tokens/manifest.json"
MODEL = str(SCALE.two_layer.model.folder)
MODEL_JSON = f"{R}/model/model.json"
STEPS = SCALE.two_layer.checkpoints
CONTROL_STEPS = NORMALISED["two_layer"]["control_checkpoints"]
LOSSES = [f"{R}/losses/step_{step:06d}.zarr" for step in STEPS]
CONTROLS = [f"{R}/losses/step_{step:06d}.control.zarr" for step in CONTROL_STEPS]
PY = shlex.quote(sys.executable)
# How to give this scale to a script that reads the file again.
SCALE_ARGUMENTS = f"--scale {SCALE.scale}" + (
    f" --config-file {shlex.quote(str(config['config_file']))}" if "config_file" in config else ""
)

SECTIONS = {}  # section -> files of its results and figures
TARGETS = {}  # every other short name -> files


def code(*names):
    return code_hash(names)


def settings(*keys):
    return {key: setting(NORMALISED, key) for key in keys}


def fig(name):
    return [f"{R}/figures/{name}.pdf", f"{R}/figures/{name}.png"]


def table(name):
    return [f"{R}/tables/{name}.csv", f"{R}/tables/{name}.html"]


def page(name):
    return f"{R}/pages/{name}.html"


def section(name, results, figures=(), tables=(), pages=()):
    """Make ``name`` a target with these results, figures, tables and pages, and each of them one.

    A figure and a page may share a name, which is then the target of both.
    """
    if name in SECTIONS:
        raise WorkflowError(f"section {name!r} is registered twice")
    shown = {}
    for kind, names in ((fig, figures), (table, tables), (page, pages)):
        for shown_name in names:
            files = kind(shown_name)
            shown.setdefault(shown_name, []).extend([files] if isinstance(files, str) else files)
    SECTIONS[name] = [*results, *(file for files in shown.values() for file in files)]
    TARGETS.update(shown)


# Written here, and only when a setting has changed. As the output of a rule it would be input to
# all others, and every one of them would run again after any change. (Never mark a file `ancient`
# that a rule here makes: Snakemake 9.27 then overlooks changed parameters of the rules below it.)
if not (Path(CONFIG).is_file() and read_json(Path(CONFIG)) == NORMALISED):
    write_json(Path(CONFIG), NORMALISED)


wildcard_constraints:
    step=r"\d{6}",


localrules:
    plan,
    check,


rule all:
    default_target: True
    input:
        lambda wildcards: [file for files in SECTIONS.values() for file in files],
        f"{R}/comparison.csv",
        f"{R}/report/index.html",


for rules_file in sorted(Path("workflow").glob("*.smk")):
    include: rules_file.as_posix()
for rules_file in sorted(Path("experiments").glob("*/*/rules.smk")):
    include: rules_file.as_posix()


# A section may have a figure of its own name: the section's files hold the figure's.
for target, files in {**TARGETS, **SECTIONS}.items():
    if workflow.is_rule(target):
        # A figure's own rule may carry its name; a section is more than one rule's files.
        if target in SECTIONS:
            raise WorkflowError(f"rule {target} has the name of a section; give it another")
        continue

    rule:
        name: target
        input: files


onsuccess:
    page = Path(f"{R}/report/index.html")
    if page.exists():
        print(f"report: {page}", file=sys.stderr)
