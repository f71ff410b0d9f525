# Per-token susceptibilities (Baker 3.2, C.2): shards of components -> moments -> estimates; and
# the zero ablations that they are compared with. `.control` is n_beta = 0, as for `sample`.

_per_token = NORMALISED["two_layer"]["per_token"]


def _per_token_files(steps, control, *names):
    folders = [f"{R}/per_token/step_{step:06d}{control}" for step in steps]
    return [f"{folder}/{name}" for folder in folders for name in names]


_ESTIMATES = ("susceptibility.zarr", "tokens.parquet", "reliability.parquet", "estimator.parquet")
# What the sections read: of the checkpoints, of the control, the ablations, and the chains'
# moments at the last checkpoint.
PER_TOKEN = {
    "susceptibility": _per_token_files(_per_token["checkpoints"], "", *_ESTIMATES),
    "control": _per_token_files(_per_token["control_checkpoints"], ".control", *_ESTIMATES),
    "ablation": _per_token_files(_per_token["checkpoints"], "", "ablation.parquet"),
    "moments": _per_token_files(
        _per_token["checkpoints"][-1:],
        "",
        *(f"moments.{shard}.zarr" for shard in range(_per_token["shards"])),
    ),
}


# One thread a job: two shards side by side use two cores better than one with two threads.
rule per_token_sample:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        model=lambda wildcards: (
            [f"{MODEL}/config.json", CHECKPOINTS[int(wildcards.step)]] if IN_FOLDER else MODEL_JSON
        ),
    output:
        directory(f"{R}/per_token/step_{{step}}{{control}}/moments.{{shard}}.zarr"),
    wildcard_constraints:
        control=r"(\.control)?",
        shard=r"\d+",
    params:
        step=lambda wildcards: int(wildcards.step),
        control=lambda wildcards: "--control" if wildcards.control else "",
        code=code("workflow/per_token_sample.py"),
        settings=settings(
            "two_layer.model",
            "two_layer.seed",
            "two_layer.per_token.contexts",
            "two_layer.per_token.sampler",
            "two_layer.per_token.shards",
            "two_layer.evaluation",
        ),
    threads: 1
    log:
        f"{R}/logs/per_token_sample_{{step}}{{control}}.{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/per_token_sample_{{step}}{{control}}.{{shard}}.tsv"
    shell:
        "{PY} workflow/per_token_sample.py --config {input.config} --step {params.step}"
        " {params.control} --shard {wildcards.shard} --tokens {R}/tokens --model {MODEL}"
        " --out {output} 2>&1 | tee {log}"


rule per_token_estimate:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        tokenizer=TOKENIZER,
        shards=[
            f"{R}/per_token/step_{{step}}{{control}}/moments.{shard}.zarr"
            for shard in range(_per_token["shards"])
        ],
    output:
        directory(f"{R}/per_token/step_{{step}}{{control}}/susceptibility.zarr"),
        f"{R}/per_token/step_{{step}}{{control}}/tokens.parquet",
        f"{R}/per_token/step_{{step}}{{control}}/reliability.parquet",
        f"{R}/per_token/step_{{step}}{{control}}/estimator.parquet",
    wildcard_constraints:
        control=r"(\.control)?",
    params:
        code=code("workflow/per_token_estimate.py"),
        settings=settings("two_layer.seed", "two_layer.per_token.contexts"),
    log:
        f"{R}/logs/per_token_estimate_{{step}}{{control}}.log",
    benchmark:
        f"{R}/benchmarks/per_token_estimate_{{step}}{{control}}.tsv"
    shell:
        "{PY} workflow/per_token_estimate.py --config {input.config} --tokens {R}/tokens"
        " --model {MODEL} --shards {input.shards} 2>&1 | tee {log}"


rule ablation:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        model=lambda wildcards: (
            [f"{MODEL}/config.json", CHECKPOINTS[int(wildcards.step)]] if IN_FOLDER else MODEL_JSON
        ),
    output:
        f"{R}/per_token/step_{{step}}/ablation.parquet",
    params:
        step=lambda wildcards: int(wildcards.step),
        code=code("workflow/ablation.py"),
        settings=settings("two_layer.model", "two_layer.per_token.contexts"),
    log:
        f"{R}/logs/ablation_{{step}}.log",
    benchmark:
        f"{R}/benchmarks/ablation_{{step}}.tsv"
    shell:
        "{PY} workflow/ablation.py --config {input.config} --step {params.step}"
        " --tokens {R}/tokens --model {MODEL} --out {output} 2>&1 | tee {log}"


section(
    "per_token",
    results=[file for name in ("susceptibility", "control", "ablation") for file in PER_TOKEN[name]],
)
