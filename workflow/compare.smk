# From all sections to the comparison; and what a run would cost.


rule compare:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        model=MODEL_JSON,
        results=lambda wildcards: [file for files in SECTIONS.values() for file in files],
        published=sorted(path.as_posix() for path in Path("published").glob("*.yaml")),
        claims=sorted(path.as_posix() for path in Path("experiments").glob("*/*/claims.yaml")),
        captions=sorted(path.as_posix() for path in Path("experiments").glob("*/*/figures.yaml")),
        citation="CITATION.cff",
    output:
        f"{R}/comparison.csv",
        f"{R}/report/index.html",
    params:
        code=code("workflow/report.py", "templates"),
        config=NORMALISED,
    log:
        f"{R}/logs/compare.log",
    benchmark:
        f"{R}/benchmarks/compare.tsv"
    shell:
        "{PY} workflow/report.py --results {R} --scale {SCALE.scale} 2>&1 | tee {log}"


# Never up to date: a check is an answer, not a file.
rule check:
    input:
        f"{R}/comparison.csv",
    log:
        f"{R}/logs/check.log",
    shell:
        "{PY} workflow/check.py --comparison {input} 2>&1 | tee {log}"


rule plan:
    params:
        scale=SCALE_ARGUMENTS,
    log:
        f"{R}/logs/plan.log",
    shell:
        "{PY} workflow/plan.py {params.scale} 2>&1 | tee {log}"
