# Baker et al. 4.3 and Appendix F: per-token susceptibilities, zero ablations -> figures, claims.

S4_3 = f"{R}/baker2025/s4_3_ablations"
S4_3_CODE = "experiments/baker2025/s4_3_ablations"
S4_3_FIGURES = ["fig7", "fig31", "ablation_correlations"]
S4_3_TABLES = [f"{S4_3}/{table}.parquet" for table in ("correlations", "ceilings", "density")]
S4_3_SAMPLE = f"{S4_3}/fig32.highlight.json"


rule ablation_tables:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        susceptibility=PER_TOKEN["susceptibility"],
        control=PER_TOKEN["control"],
        ablation=PER_TOKEN["ablation"],
    output:
        S4_3_TABLES,
    params:
        code=code(f"{S4_3_CODE}/ablation_tables.py"),
        settings=settings("two_layer.per_token"),
    log:
        f"{R}/logs/ablation_tables.log",
    benchmark:
        f"{R}/benchmarks/ablation_tables.tsv"
    shell:
        "{PY} {S4_3_CODE}/ablation_tables.py --results {R} 2>&1 | tee {log}"


rule ablation_claims:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        tables=S4_3_TABLES,
    output:
        f"{S4_3}/measured.json",
        f"{S4_3}/sensitivity.parquet",
    params:
        code=code(f"{S4_3_CODE}/ablation_claims.py"),
        settings=settings("two_layer.per_token"),
    log:
        f"{R}/logs/ablation_claims.log",
    benchmark:
        f"{R}/benchmarks/ablation_claims.tsv"
    shell:
        "{PY} {S4_3_CODE}/ablation_claims.py --results {R} 2>&1 | tee {log}"


rule highlighted_sample:
    input:
        config=ancient(CONFIG),
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        susceptibility=PER_TOKEN["susceptibility"],
        control=PER_TOKEN["control"],
        ablation=PER_TOKEN["ablation"],
    output:
        S4_3_SAMPLE,
        f"{S4_3}/repeats.parquet",
    params:
        code=code(f"{S4_3_CODE}/highlighted_sample.py"),
        settings=settings("two_layer.per_token"),
    log:
        f"{R}/logs/highlighted_sample.log",
    benchmark:
        f"{R}/benchmarks/highlighted_sample.tsv"
    shell:
        "{PY} {S4_3_CODE}/highlighted_sample.py --results {R} 2>&1 | tee {log}"


section(
    "s4_3",
    results=[
        *S4_3_TABLES,
        f"{S4_3}/measured.json",
        f"{S4_3}/sensitivity.parquet",
        f"{S4_3}/repeats.parquet",
    ],
    figures=[*S4_3_FIGURES, "fig32"],
    pages=["fig32"],
)


# One job draws them all, as in section 4.1.
rule draw_ablations:
    input:
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        tables=S4_3_TABLES,
        style="figures/style.mplstyle",
    output:
        [fig(name) for name in S4_3_FIGURES],
    params:
        code=code("figures/ablations.py"),
        names=" ".join(S4_3_FIGURES),
    log:
        f"{R}/logs/draw_ablations.log",
    benchmark:
        f"{R}/benchmarks/draw_ablations.tsv"
    shell:
        "{PY} figures/ablations.py --results {R} --figure {params.names} 2>&1 | tee {log}"


rule draw_highlighted_sample:
    input:
        sample=S4_3_SAMPLE,
        style="figures/style.mplstyle",
    output:
        fig("fig32"),
        page=page("fig32"),
    params:
        code=code("figures/highlight.py"),
        out=f"{R}/figures/fig32",
    log:
        f"{R}/logs/draw_highlighted_sample.log",
    benchmark:
        f"{R}/benchmarks/draw_highlighted_sample.tsv"
    shell:
        "{PY} figures/highlight.py --results {R} --spec {input.sample} --out {params.out}"
        " --page {output.page} 2>&1 | tee {log}"
