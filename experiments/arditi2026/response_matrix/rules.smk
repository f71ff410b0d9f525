# Arditi 4.2-4.3 and later versions of Baker et al.: per-token susceptibilities -> response matrix,
# its PCA, claims, figures; and the page on what a susceptibility is made of.

RESPONSE = f"{R}/arditi2026/response_matrix"
RESPONSE_CODE = "experiments/arditi2026/response_matrix"
RESPONSE_TABLES = [
    f"{RESPONSE}/{name}.parquet"
    for name in (
        "variance",
        "loadings",
        "by_role",
        "uniform",
        "made_of",
        "construction",
        "enrichment",
        "ends",
        "sizes",
        "reliability",
        "half",
        "beside_control",
    )
]
RESPONSE_FIGURES = ["parts_of_chi", "response_pca", "pc_categories", "reliability_by_draws"]


rule response_tables:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        model=MODEL_JSON,
        heads=f"{R}/structure/heads.parquet",
        susceptibility=PER_TOKEN["susceptibility"],
        control=PER_TOKEN["control"],
    output:
        RESPONSE_TABLES,
    params:
        code=code(f"{RESPONSE_CODE}/response_matrix.py"),
        settings=settings("two_layer.per_token"),
    log:
        f"{R}/logs/response_tables.log",
    benchmark:
        f"{R}/benchmarks/response_tables.tsv"
    shell:
        "{PY} {RESPONSE_CODE}/response_matrix.py --results {R} 2>&1 | tee {log}"


rule response_claims:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        model=MODEL_JSON,
        heads=f"{R}/structure/heads.parquet",
        susceptibility=PER_TOKEN["susceptibility"],
        control=PER_TOKEN["control"],
        ablation=PER_TOKEN["ablation"],
    output:
        f"{RESPONSE}/measured.json",
        f"{RESPONSE}/sensitivity.parquet",
        f"{RESPONSE}/induction.parquet",
    params:
        code=code(f"{RESPONSE_CODE}/response_claims.py"),
        settings=settings("two_layer.per_token"),
    log:
        f"{R}/logs/response_claims.log",
    benchmark:
        f"{R}/benchmarks/response_claims.tsv"
    shell:
        "{PY} {RESPONSE_CODE}/response_claims.py --results {R} 2>&1 | tee {log}"


rule draw_response:
    input:
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        tables=RESPONSE_TABLES,
        style="figures/style.mplstyle",
    output:
        [fig(name) for name in RESPONSE_FIGURES],
    params:
        code=code("figures/response_matrix.py"),
        names=" ".join(RESPONSE_FIGURES),
    log:
        f"{R}/logs/draw_response.log",
    benchmark:
        f"{R}/benchmarks/draw_response.tsv"
    shell:
        "{PY} figures/response_matrix.py --results {R} --figure {params.names} 2>&1 | tee {log}"


# The page tells of every section's claims, so it comes after all of them; the section does not.
def every_measured(wildcards):
    return [
        file
        for files in SECTIONS.values()
        for file in files
        if file.endswith("/measured.json")
    ]


rule draw_what_chi_is_made_of:
    input:
        config=ancient(CONFIG),
        model=MODEL_JSON,
        tokens=TOKENS,
        tables=RESPONSE_TABLES,
        induction=f"{RESPONSE}/induction.parquet",
        llc=f"{R}/baker2025/s4_1_dataset_susceptibilities/llc.parquet",
        figures=[fig(name) for name in RESPONSE_FIGURES],
        measured=every_measured,
        published=sorted(path.as_posix() for path in Path("published").glob("*.yaml")),
        template=f"{RESPONSE_CODE}/what_chi_is_made_of.html.jinja",
    output:
        page("what_chi_is_made_of"),
    params:
        code=code(f"{RESPONSE_CODE}/what_chi_is_made_of.py", "templates"),
    log:
        f"{R}/logs/draw_what_chi_is_made_of.log",
    benchmark:
        f"{R}/benchmarks/draw_what_chi_is_made_of.tsv"
    shell:
        "{PY} {RESPONSE_CODE}/what_chi_is_made_of.py --results {R} 2>&1 | tee {log}"


section(
    "response_matrix",
    results=[
        *RESPONSE_TABLES,
        f"{RESPONSE}/measured.json",
        f"{RESPONSE}/sensitivity.parquet",
        f"{RESPONSE}/induction.parquet",
    ],
    figures=RESPONSE_FIGURES,
)
# A section of its own in the workflow only: a target that waits for all others.
section("chi_page", results=[], pages=["what_chi_is_made_of"])
