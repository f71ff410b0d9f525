# The covariance part without sampling beside the sampled one: tables, a figure, a page. Nothing
# where the scale has no `two_layer.per_token.spectral`; see workflow/spectral.smk.

SPECTRAL = f"{R}/estimators/spectral_covariance"
SPECTRAL_CODE = "experiments/estimators/spectral_covariance"
SPECTRAL_TABLES = [
    f"{SPECTRAL}/{name}.parquet"
    for name in (
        "terms",
        "reliability",
        "cost",
        "agreement",
        "control",
        "departure",
        "spectrum",
        "scaling",
    )
]


rule spectral_tables:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        sets=SPECTRAL_SETS,
        shards=PER_TOKEN["moments"],
        estimates=[*PER_TOKEN["susceptibility"], *PER_TOKEN["control"]],
    output:
        SPECTRAL_TABLES,
    params:
        code=code(f"{SPECTRAL_CODE}/spectral_tables.py"),
        settings=settings("two_layer.context", "two_layer.base_contexts", "two_layer.per_token"),
    log:
        f"{R}/logs/spectral_tables.log",
    benchmark:
        f"{R}/benchmarks/spectral_tables.tsv"
    shell:
        "{PY} {SPECTRAL_CODE}/spectral_tables.py --results {R} 2>&1 | tee {log}"


rule draw_spectral:
    input:
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        tables=SPECTRAL_TABLES,
        style="figures/style.mplstyle",
    output:
        fig("spectral"),
    params:
        code=code("figures/spectral.py"),
    log:
        f"{R}/logs/draw_spectral.log",
    benchmark:
        f"{R}/benchmarks/draw_spectral.tsv"
    shell:
        "{PY} figures/spectral.py --results {R} 2>&1 | tee {log}"


rule draw_spectral_page:
    input:
        config=ancient(CONFIG),
        model=MODEL_JSON,
        tables=SPECTRAL_TABLES,
        template=f"{SPECTRAL_CODE}/spectral.html.jinja",
    output:
        table("spectral"),
        page("spectral"),
    params:
        code=code(f"{SPECTRAL_CODE}/spectral_page.py", "templates"),
        settings=settings("two_layer.per_token.sampler", "two_layer.per_token.spectral"),
    log:
        f"{R}/logs/draw_spectral_page.log",
    benchmark:
        f"{R}/benchmarks/draw_spectral_page.tsv"
    shell:
        "{PY} {SPECTRAL_CODE}/spectral_page.py --results {R} 2>&1 | tee {log}"


if SPECTRAL_SETS:
    section(
        "spectral_covariance",
        results=[*SPECTRAL_SETS, *SPECTRAL_TABLES],
        figures=["spectral"],
        tables=["spectral"],
        pages=["spectral"],
    )
