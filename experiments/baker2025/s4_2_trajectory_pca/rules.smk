# Baker et al. 3.3, 4.2 and Appendix B: susceptibilities -> joint trajectory PCA -> figures, claims.

S4_2 = f"{R}/baker2025/s4_2_trajectory_pca"
S4_2_CODE = "experiments/baker2025/s4_2_trajectory_pca"
S4_2_SOURCE = f"{R}/baker2025/s4_1_dataset_susceptibilities"
S4_2_FIGURES = ["fig6", "fig12", "fig13", "fig14", "fig15"]
S4_2_TABLES = [
    f"{S4_2}/{table}.parquet" for table in ("loadings", "variance", "contributions", "scores")
]


rule trajectory_pca:
    input:
        susceptibility=f"{S4_2_SOURCE}/susceptibility.parquet",
        replicates=f"{S4_2_SOURCE}/replicates.parquet",
        heads=f"{R}/structure/heads.parquet",
    output:
        S4_2_TABLES,
    params:
        code=code(f"{S4_2_CODE}/trajectory_pca.py"),
    log:
        f"{R}/logs/trajectory_pca.log",
    benchmark:
        f"{R}/benchmarks/trajectory_pca.tsv"
    shell:
        "{PY} {S4_2_CODE}/trajectory_pca.py --results {R} 2>&1 | tee {log}"


rule trajectory_pca_claims:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        susceptibility=f"{S4_2_SOURCE}/susceptibility.parquet",
        replicates=f"{S4_2_SOURCE}/replicates.parquet",
        control=f"{S4_2_SOURCE}/control.parquet",
        parts=f"{S4_2_SOURCE}/parts.parquet",
    output:
        f"{S4_2}/measured.json",
        f"{S4_2}/sensitivity.parquet",
    params:
        code=code(f"{S4_2_CODE}/trajectory_pca_claims.py"),
        settings=settings("two_layer.sampler"),
    log:
        f"{R}/logs/trajectory_pca_claims.log",
    benchmark:
        f"{R}/benchmarks/trajectory_pca_claims.tsv"
    shell:
        "{PY} {S4_2_CODE}/trajectory_pca_claims.py --results {R} 2>&1 | tee {log}"


section(
    "s4_2",
    results=[*S4_2_TABLES, f"{S4_2}/measured.json", f"{S4_2}/sensitivity.parquet"],
    figures=S4_2_FIGURES,
)


# One job draws them all, as in section 4.1.
rule draw_trajectory_pca:
    input:
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        tables=S4_2_TABLES,
        style="figures/style.mplstyle",
    output:
        [fig(name) for name in S4_2_FIGURES],
    params:
        code=code("figures/trajectory_pca.py"),
        names=" ".join(S4_2_FIGURES),
    log:
        f"{R}/logs/draw_trajectory_pca.log",
    benchmark:
        f"{R}/benchmarks/draw_trajectory_pca.tsv"
    shell:
        "{PY} figures/trajectory_pca.py --results {R} --figure {params.names} 2>&1 | tee {log}"
