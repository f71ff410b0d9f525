# What all sections stand on: corpus -> model, tokens -> losses along chains; and the heads'
# structural scores, which need no chains.

_corpus, _model = SCALE.corpus, SCALE.two_layer.model

# What makes a corpus this one and not another. Corpora are shared by scales, so their rule
# depends on nothing that carries a scale's name.
CORPUS_SPEC = NORMALISED["corpus"]
CORPUS_INPUTS, CORPUS_DEFINITION = [], None
if _corpus.kind == "packages":
    CORPUS_DEFINITION = package_corpus(_corpus).model_dump(mode="json")
elif _corpus.kind == "folder":
    CORPUS_INPUTS = sorted(path.as_posix() for path in _corpus.path.glob("*.jsonl.gz"))

# A model in a folder is there before the run: its files are inputs. Other models are made by
# the rule `model`, and the settings that made them stand for their files.
IN_FOLDER = _model.kind == "folder"
CHECKPOINTS = {step: f"{MODEL}/checkpoints/step_{step:06d}.safetensors" for step in STEPS}
TOKENIZER = f"{MODEL}/tokenizer.json" if IN_FOLDER else MODEL_JSON


# Nothing is fetched before this rule runs, so a dry run needs no network.
rule corpus:
    input:
        CORPUS_INPUTS,
    output:
        CORPUS,
    params:
        code=code("workflow/corpus.py"),
        spec=json.dumps(CORPUS_SPEC, sort_keys=True),
        definition=CORPUS_DEFINITION,
    log:
        f"data/logs/{_corpus.name}.log",
    benchmark:
        f"data/logs/{_corpus.name}.tsv"
    shell:
        "{PY} workflow/corpus.py --spec {params.spec:q} --downloads data/downloads"
        " --out data/{SCALE.corpus.name} 2>&1 | tee {log}"


# A folder is checked, a hub model fetched, a new model trained (and resumed if interrupted).
rule model:
    input:
        config=ancient(CONFIG),
        files=[f"{MODEL}/config.json", TOKENIZER, *CHECKPOINTS.values()] if IN_FOLDER else [],
        corpus=CORPUS if _model.kind == "train" else [],
    output:
        MODEL_JSON,
    params:
        code=code("workflow/model.py"),
        # Training makes all its checkpoints, whichever are wanted.
        settings=settings(
            "two_layer.model", *(["two_layer.checkpoints"] if _model.kind != "train" else [])
        ),
    threads: workflow.cores if _model.kind == "train" else 1
    log:
        f"{R}/logs/model.log",
    benchmark:
        f"{R}/benchmarks/model.tsv"
    shell:
        "{PY} workflow/model.py --config {input.config} --corpus data/{SCALE.corpus.name}"
        " --model {MODEL} --out {output} 2>&1 | tee {log}"


rule tokens:
    input:
        config=ancient(CONFIG),
        corpus=CORPUS,
        tokenizer=TOKENIZER,
    output:
        TOKENS,
        f"{R}/tokens/base.npy",
        f"{R}/tokens/sgld.npy",
        [f"{R}/tokens/probe.{probe}.npy" for probe in (*DOMAINS, CONTROL_PROBE)],
    params:
        code=code("workflow/tokens.py"),
        settings=settings(
            "corpus",
            "two_layer.model",
            "two_layer.context",
            "two_layer.base_contexts",
            "two_layer.sgld_contexts",
            "two_layer.per_token.contexts",
            "two_layer.seed",
        ),
    log:
        f"{R}/logs/tokens.log",
    benchmark:
        f"{R}/benchmarks/tokens.tsv"
    shell:
        "{PY} workflow/tokens.py --config {input.config} --corpus data/{SCALE.corpus.name}"
        " --model {MODEL} --out {R}/tokens 2>&1 | tee {log}"


# One job a checkpoint, one thread a job: two checkpoints side by side use two cores better than
# one checkpoint with two threads. `.control` is the negative control, n_beta = 0.
rule sample:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        # Where there are files to name, a new checkpoint does not touch the others' chains.
        model=lambda wildcards: (
            [f"{MODEL}/config.json", CHECKPOINTS[int(wildcards.step)]] if IN_FOLDER else MODEL_JSON
        ),
    output:
        directory(f"{R}/losses/step_{{step}}{{control}}.zarr"),
    wildcard_constraints:
        control=r"(\.control)?",
    params:
        step=lambda wildcards: int(wildcards.step),
        control=lambda wildcards: "--control" if wildcards.control else "",
        code=code("workflow/sample.py"),
        settings=settings(
            "two_layer.model",
            "two_layer.delta_h",
            "two_layer.seed",
            "two_layer.sampler",
            "two_layer.evaluation",
        ),
    threads: 1
    log:
        f"{R}/logs/sample_{{step}}{{control}}.log",
    benchmark:
        f"{R}/benchmarks/sample_{{step}}{{control}}.tsv"
    shell:
        "{PY} workflow/sample.py --config {input.config} --step {params.step} {params.control}"
        " --tokens {R}/tokens --model {MODEL} --out {output} 2>&1 | tee {log}"


rule structure_scores:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        model=MODEL_JSON,
    output:
        f"{R}/structure/heads.parquet",
        f"{R}/structure/repeats.parquet",
    params:
        code=code("workflow/structure.py"),
        settings=settings("two_layer.model", "two_layer.checkpoints", "two_layer.seed"),
    log:
        f"{R}/logs/structure_scores.log",
    benchmark:
        f"{R}/benchmarks/structure_scores.tsv"
    shell:
        "{PY} workflow/structure.py --config {input.config} --model {MODEL}"
        " --tokens {R}/tokens --out-dir {R}/structure 2>&1 | tee {log}"


section("structure", rules.structure_scores.output, figures=["structure", "training"])


rule draw_structure:
    input:
        tables=rules.structure_scores.output,
        model=MODEL_JSON,
        tokens=TOKENS,
        style="figures/style.mplstyle",
    output:
        fig("structure"),
    params:
        code=code("figures/structure.py"),
    log:
        f"{R}/logs/draw_structure.log",
    benchmark:
        f"{R}/benchmarks/draw_structure.tsv"
    shell:
        "{PY} figures/structure.py --results {R} 2>&1 | tee {log}"


# The loss curve of the run that made the model, where the model's folder has its log.
rule training:
    input:
        model=MODEL_JSON,
        curve=[str(p) for p in [Path(MODEL) / "log.jsonl"] if IN_FOLDER and p.exists()],
        style="figures/style.mplstyle",
    output:
        fig("training"),
    params:
        code=code("figures/training.py"),
    log:
        f"{R}/logs/training.log",
    benchmark:
        f"{R}/benchmarks/training.tsv"
    shell:
        "{PY} figures/training.py --results {R} 2>&1 | tee {log}"
