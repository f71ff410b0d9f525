# The GPT-NeoX models' susceptibility matrices (Gordon et al., section 1): a model, its tokens,
# shards of components, the matrix. `.control` is the n_beta = 0 baseline.

_ground_truth = NORMALISED["ground_truth"] or {"models": {}}
GT = f"{R}/ground_truth"
# What the sections read, by model: the folders of the matrix and of the control's.
GROUND_TRUTH = {
    role: [f"{GT}/{role}/matrix", *([f"{GT}/{role}/matrix.control"] if own["control"] else [])]
    for role, own in _ground_truth["models"].items()
}
_folders, _files = {}, {}
for _role, _settings in _ground_truth["models"].items():
    _spec = SCALE.ground_truth.models[_role].model
    _folders[_role] = str(_spec.folder)
    # Files that are there before the run; of other models the description stands for them.
    _files[_role] = {
        "checkpoint": f"{GT}/{_role}/model.json",
        "tokenizer": f"{GT}/{_role}/model.json",
        "corpus": CORPUS if _spec.kind == "train" else [],
    }
    if _spec.kind == "folder":
        _files[_role] |= {
            "checkpoint": f"{_spec.folder}/checkpoints/step_{_settings['checkpoint']:06d}.safetensors",
            "tokenizer": f"{_spec.folder}/tokenizer.json",
        }
if _folders:
    TARGETS["ground_truth_models"] = [f"{GT}/{role}/model.json" for role in GROUND_TRUTH]


rule ground_truth_model:
    input:
        config=ancient(CONFIG),
        files=lambda wildcards: [
            file
            for file in _files[wildcards.role].values()
            if file and not file.endswith("model.json")
        ],
    output:
        f"{GT}/{{role}}/model.json",
    params:
        folder=lambda wildcards: _folders[wildcards.role],
        code=code("workflow/model.py"),
        settings=lambda wildcards: settings(
            f"ground_truth.models.{wildcards.role}.model",
            f"ground_truth.models.{wildcards.role}.checkpoint",
        ),
    log:
        f"{R}/logs/ground_truth_model.{{role}}.log",
    benchmark:
        f"{R}/benchmarks/ground_truth_model.{{role}}.tsv"
    shell:
        "{PY} workflow/model.py --config {input.config} --settings ground_truth.models.{wildcards.role}"
        " --corpus data/{SCALE.corpus.name} --model {params.folder} --out {output} 2>&1 | tee {log}"


rule ground_truth_tokens:
    input:
        config=ancient(CONFIG),
        corpus=CORPUS,
        tokenizer=lambda wildcards: _files[wildcards.role]["tokenizer"],
    output:
        f"{GT}/{{role}}/tokens/manifest.json",
        f"{GT}/{{role}}/tokens/base.npy",
        f"{GT}/{{role}}/tokens/sgld.npy",
        [f"{GT}/{{role}}/tokens/probe.{domain}.npy" for domain in DOMAINS],
    params:
        folder=lambda wildcards: _folders[wildcards.role],
        out=lambda wildcards, output: Path(output[0]).parent,
        code=code("workflow/tokens.py"),
        settings=lambda wildcards: settings(
            "corpus",
            f"ground_truth.models.{wildcards.role}.model",
            "ground_truth.context",
            "ground_truth.contexts",
            "ground_truth.base_contexts",
            "ground_truth.sgld_contexts",
            "ground_truth.seed",
        ),
    log:
        f"{R}/logs/ground_truth_tokens.{{role}}.log",
    benchmark:
        f"{R}/benchmarks/ground_truth_tokens.{{role}}.tsv"
    shell:
        "{PY} workflow/tokens.py --config {input.config} --settings ground_truth"
        " --corpus data/{SCALE.corpus.name} --model {params.folder} --out {params.out}"
        " 2>&1 | tee {log}"


# One thread a job: two shards side by side use two cores better than one with two threads.
rule ground_truth_sample:
    input:
        config=ancient(CONFIG),
        tokens=f"{GT}/{{role}}/tokens/manifest.json",
        model=lambda wildcards: _files[wildcards.role]["checkpoint"],
    output:
        directory(f"{GT}/{{role}}/moments{{control}}.{{shard}}.zarr"),
    wildcard_constraints:
        control=r"(\.control)?",
        shard=r"\d+",
    params:
        folder=lambda wildcards: _folders[wildcards.role],
        tokens=lambda wildcards, input: Path(input.tokens).parent,
        control=lambda wildcards: "--control" if wildcards.control else "",
        code=code("workflow/ground_truth_sample.py"),
        settings=lambda wildcards: settings(
            f"ground_truth.models.{wildcards.role}",
            "ground_truth.contexts",
            "ground_truth.seed",
            "ground_truth.evaluation",
        ),
    threads: 1
    log:
        f"{R}/logs/ground_truth_sample.{{role}}{{control}}.{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/ground_truth_sample.{{role}}{{control}}.{{shard}}.tsv"
    shell:
        "{PY} workflow/ground_truth_sample.py --config {input.config} --role {wildcards.role}"
        " --shard {wildcards.shard} {params.control} --tokens {params.tokens}"
        " --model {params.folder} --out {output} 2>&1 | tee {log}"


rule ground_truth_matrix:
    input:
        config=ancient(CONFIG),
        model=f"{GT}/{{role}}/model.json",
        tokens=f"{GT}/{{role}}/tokens/manifest.json",
        shards=lambda wildcards: [
            f"{GT}/{wildcards.role}/moments{wildcards.control}.{shard}.zarr"
            for shard in range(_ground_truth["models"][wildcards.role]["shards"])
        ],
    output:
        directory(f"{GT}/{{role}}/matrix{{control}}"),
    wildcard_constraints:
        control=r"(\.control)?",
    params:
        tokens=lambda wildcards, input: Path(input.tokens).parent,
        code=code("workflow/ground_truth_matrix.py"),
        settings=settings("ground_truth.contexts") if _folders else {},
    log:
        f"{R}/logs/ground_truth_matrix.{{role}}{{control}}.log",
    benchmark:
        f"{R}/benchmarks/ground_truth_matrix.{{role}}{{control}}.tsv"
    shell:
        "{PY} workflow/ground_truth_matrix.py --config {input.config} --model {input.model}"
        " --tokens {params.tokens} --shards {input.shards} --out {output} 2>&1 | tee {log}"
