# Baker et al. 4.1 and Appendix D: losses along chains -> susceptibilities -> figures, claims.

S4_1 = f"{R}/baker2025/s4_1_dataset_susceptibilities"
S4_1_CODE = "experiments/baker2025/s4_1_dataset_susceptibilities"
S4_1_FIGURES = ["fig3", "fig4", "fig5", *(f"fig{number}" for number in range(16, 30))]
S4_1_TABLES = [
    f"{S4_1}/{table}.parquet"
    for table in (
        "susceptibility",
        "replicates",
        "llc",
        "health",
        "control",
        "traces",
        "parts",
        "control_parts",
        "estimator",
    )
]


rule dataset_susceptibilities:
    input:
        losses=LOSSES,
        controls=CONTROLS,
    output:
        S4_1_TABLES,
    params:
        code=code(f"{S4_1_CODE}/dataset_susceptibilities.py"),
    log:
        f"{R}/logs/dataset_susceptibilities.log",
    benchmark:
        f"{R}/benchmarks/dataset_susceptibilities.tsv"
    shell:
        "{PY} {S4_1_CODE}/dataset_susceptibilities.py --results {R} --losses {input.losses}"
        " --controls {input.controls} 2>&1 | tee {log}"


rule susceptibility_claims:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        tables=S4_1_TABLES,
    output:
        f"{S4_1}/measured.json",
        f"{S4_1}/sensitivity.parquet",
    params:
        code=code(f"{S4_1_CODE}/susceptibility_claims.py"),
        settings=settings("two_layer.delta_h", "two_layer.sampler"),
    log:
        f"{R}/logs/susceptibility_claims.log",
    benchmark:
        f"{R}/benchmarks/susceptibility_claims.tsv"
    shell:
        "{PY} {S4_1_CODE}/susceptibility_claims.py --results {R} 2>&1 | tee {log}"


section(
    "s4_1",
    results=[*S4_1_TABLES, f"{S4_1}/measured.json", f"{S4_1}/sensitivity.parquet"],
    figures=S4_1_FIGURES,
)


# One job draws them all: importing the plotting library takes longer than drawing a figure.
rule susceptibility_over_training:
    input:
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        table=f"{S4_1}/susceptibility.parquet",
        style="figures/style.mplstyle",
    output:
        [fig(name) for name in S4_1_FIGURES],
    params:
        code=code("figures/susceptibility_over_training.py"),
        names=" ".join(S4_1_FIGURES),
    log:
        f"{R}/logs/susceptibility_over_training.log",
    benchmark:
        f"{R}/benchmarks/susceptibility_over_training.tsv"
    shell:
        "{PY} figures/susceptibility_over_training.py --results {R} --figure {params.names}"
        " 2>&1 | tee {log}"
