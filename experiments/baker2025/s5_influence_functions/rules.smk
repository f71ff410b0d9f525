# Baker et al. 5 and the post's appendix: a few contexts -> losses along chains -> influences.

S5 = f"{R}/baker2025/s5_influence_functions"
S5_CODE = "experiments/baker2025/s5_influence_functions"
S5_TABLES = [
    f"{S5}/{table}.parquet"
    for table in ("pairs", "differences", "contexts", "sequence", "reliability", "chains")
]


# Both runs in one job: each is shorter than what starting a job and loading torch takes twice.
rule influence_sample:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        tokenizer=TOKENIZER,
        model=[f"{MODEL}/config.json", CHECKPOINTS[STEPS[-1]]] if IN_FOLDER else MODEL_JSON,
    output:
        directory(f"{S5}/posterior.zarr"),
        directory(f"{S5}/control.zarr"),
        f"{S5}/tokens.parquet",
    params:
        code=code(f"{S5_CODE}/influence_sample.py"),
        settings=settings("two_layer.model", "two_layer.seed", "two_layer.sampler"),
        step=STEPS[-1],
    threads: 1
    log:
        f"{R}/logs/influence_sample.log",
    benchmark:
        f"{R}/benchmarks/influence_sample.tsv"
    shell:
        "{PY} {S5_CODE}/influence_sample.py --results {R} --model {MODEL} --step {params.step}"
        " 2>&1 | tee {log}"


rule influence_pairs:
    input:
        rules.influence_sample.output,
    output:
        S5_TABLES,
        f"{S5}/measured.json",
    params:
        code=code(f"{S5_CODE}/influence_pairs.py"),
    log:
        f"{R}/logs/influence_pairs.log",
    benchmark:
        f"{R}/benchmarks/influence_pairs.tsv"
    shell:
        "{PY} {S5_CODE}/influence_pairs.py --results {R} 2>&1 | tee {log}"


section(
    "s5_influence_functions",
    results=[*S5_TABLES, f"{S5}/measured.json"],
    figures=["influence"],
)


rule draw_influence:
    input:
        model=MODEL_JSON,
        tokens=TOKENS,
        tables=S5_TABLES,
        style="figures/style.mplstyle",
    output:
        fig("influence"),
    params:
        code=code("figures/influence_functions.py"),
    log:
        f"{R}/logs/draw_influence.log",
    benchmark:
        f"{R}/benchmarks/draw_influence.tsv"
    shell:
        "{PY} figures/influence_functions.py --results {R} 2>&1 | tee {log}"
