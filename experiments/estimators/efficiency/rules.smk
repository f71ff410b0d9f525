# Which estimator every component's means have, what a standard error costs, and how far apart
# draws should be: checks and costs of all chains -> tables, a page.

EFFICIENCY = f"{R}/estimators/efficiency"
EFFICIENCY_CODE = "experiments/estimators/efficiency"
EFFICIENCY_TABLES = [
    f"{EFFICIENCY}/{name}.parquet" for name in ("checks", "efficiency", "allocation", "thinning")
]
EFFICIENCY_SHOWN = ["estimators", "standard_errors", "allocation", "thinning"]


rule efficiency_tables:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        losses=LOSSES,
        shards=PER_TOKEN["moments"],
        estimates=[*PER_TOKEN["susceptibility"], *PER_TOKEN["control"]],
        dataset=f"{R}/baker2025/s4_1_dataset_susceptibilities/estimator.parquet",
    output:
        EFFICIENCY_TABLES,
    params:
        code=code(f"{EFFICIENCY_CODE}/efficiency_tables.py"),
        settings=settings(
            "two_layer.context",
            "two_layer.seed",
            "two_layer.sampler",
            "two_layer.per_token",
        ),
    log:
        f"{R}/logs/efficiency_tables.log",
    benchmark:
        f"{R}/benchmarks/efficiency_tables.tsv"
    shell:
        "{PY} {EFFICIENCY_CODE}/efficiency_tables.py --results {R} 2>&1 | tee {log}"


rule draw_estimators:
    input:
        config=ancient(CONFIG),
        model=MODEL_JSON,
        tables=EFFICIENCY_TABLES,
        template=f"{EFFICIENCY_CODE}/estimators.html.jinja",
    output:
        [table(name) for name in EFFICIENCY_SHOWN],
        page("estimators"),
    params:
        code=code(f"{EFFICIENCY_CODE}/estimator_page.py", "templates"),
        settings=settings("two_layer.per_token.sampler", "two_layer.evaluation"),
    log:
        f"{R}/logs/draw_estimators.log",
    benchmark:
        f"{R}/benchmarks/draw_estimators.tsv"
    shell:
        "{PY} {EFFICIENCY_CODE}/estimator_page.py --results {R} 2>&1 | tee {log}"


section(
    "efficiency",
    results=EFFICIENCY_TABLES,
    tables=EFFICIENCY_SHOWN,
    pages=["estimators"],
)
