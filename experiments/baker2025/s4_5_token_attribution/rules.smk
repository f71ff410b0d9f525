# Baker et al. 4.5, C.2 and D.9: per-token susceptibilities -> sums, gaps -> figures, tables, claims.

S4_5 = f"{R}/baker2025/s4_5_token_attribution"
S4_5_CODE = "experiments/baker2025/s4_5_token_attribution"
S4_5_SOURCE = f"{R}/baker2025/s4_1_dataset_susceptibilities"
S4_5_RESULTS = [
    f"{S4_5}/{name}.parquet" for name in ("points", "fits", "totals", "gaps", "gap_tokens")
]
S4_5_TABLES = ["table1", "table4", "gap_tokens"]
S4_5_BARS = ["fig10", "head_gaps"]

_s4_5_per_token = NORMALISED["two_layer"]["per_token"]
# Both sides of Figure 9 at the last checkpoint of the per-token run, and of its control.
S4_5_INPUT = [
    *PER_TOKEN["susceptibility"],
    *PER_TOKEN["control"],
    f"{S4_5_SOURCE}/susceptibility.parquet",
    f"{S4_5_SOURCE}/control.parquet",
    f"{R}/losses/step_{_s4_5_per_token['checkpoints'][-1]:06d}.zarr",
    *(
        f"{R}/losses/step_{step:06d}.control.zarr"
        for step in _s4_5_per_token["control_checkpoints"][-1:]
        if step in CONTROL_STEPS
    ),
]


rule token_attribution:
    input:
        S4_5_INPUT,
        config=ancient(CONFIG),
        tokens=TOKENS,
    output:
        S4_5_RESULTS,
    params:
        code=code(f"{S4_5_CODE}/token_attribution.py"),
        settings=settings("two_layer.delta_h"),
    log:
        f"{R}/logs/token_attribution.log",
    benchmark:
        f"{R}/benchmarks/token_attribution.tsv"
    shell:
        "{PY} {S4_5_CODE}/token_attribution.py --results {R} 2>&1 | tee {log}"


rule token_attribution_claims:
    input:
        S4_5_INPUT,
        config=ancient(CONFIG),
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
    output:
        f"{S4_5}/measured.json",
        f"{S4_5}/sensitivity.parquet",
    params:
        code=code(f"{S4_5_CODE}/token_attribution_claims.py"),
        settings=settings("two_layer.delta_h"),
    log:
        f"{R}/logs/token_attribution_claims.log",
    benchmark:
        f"{R}/benchmarks/token_attribution_claims.tsv"
    shell:
        "{PY} {S4_5_CODE}/token_attribution_claims.py --results {R} 2>&1 | tee {log}"


rule token_attribution_tables:
    input:
        S4_5_RESULTS,
        tokens=TOKENS,
    output:
        [table(name) for name in S4_5_TABLES],
    params:
        code=code(f"{S4_5_CODE}/token_attribution_tables.py", "templates"),
    log:
        f"{R}/logs/token_attribution_tables.log",
    benchmark:
        f"{R}/benchmarks/token_attribution_tables.tsv"
    shell:
        "{PY} {S4_5_CODE}/token_attribution_tables.py --results {R} 2>&1 | tee {log}"


section(
    "s4_5",
    results=[*S4_5_RESULTS, f"{S4_5}/measured.json", f"{S4_5}/sensitivity.parquet"],
    figures=["fig9", *S4_5_BARS],
    tables=S4_5_TABLES,
)


rule draw_token_attribution:
    input:
        config=ancient(CONFIG),
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        tables=S4_5_RESULTS,
        style="figures/style.mplstyle",
    output:
        fig("fig9"),
    params:
        code=code("figures/token_attribution.py"),
        settings=settings("two_layer.delta_h"),
    log:
        f"{R}/logs/draw_token_attribution.log",
    benchmark:
        f"{R}/benchmarks/draw_token_attribution.tsv"
    shell:
        "{PY} figures/token_attribution.py --results {R} 2>&1 | tee {log}"


rule draw_token_attribution_bars:
    input:
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        tables=S4_5_RESULTS,
        style="figures/style.mplstyle",
    output:
        [fig(name) for name in S4_5_BARS],
    params:
        code=code("figures/token_attribution_bars.py"),
        names=" ".join(S4_5_BARS),
    log:
        f"{R}/logs/draw_token_attribution_bars.log",
    benchmark:
        f"{R}/benchmarks/draw_token_attribution_bars.tsv"
    shell:
        "{PY} figures/token_attribution_bars.py --results {R} --figure {params.names}"
        " 2>&1 | tee {log}"
