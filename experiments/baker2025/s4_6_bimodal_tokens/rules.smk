# Baker et al. 4.6, G.1, G.2: per-token susceptibilities -> bimodal tokens -> figures, page, claims.

S4_6 = f"{R}/baker2025/s4_6_bimodal_tokens"
S4_6_CODE = "experiments/baker2025/s4_6_bimodal_tokens"
S4_6_FIGURES = ["fig11", "fig35", "fig36", "bimodal_search"]
S4_6_SEARCH = [
    f"{S4_6}/{table}.parquet" for table in ("search", "modes", "values", "typical", "power")
]
S4_6_CASES = [f"{S4_6}/{table}.parquet" for table in ("cases", "case_values")]


rule bimodal_search_tokens:
    input:
        config=ancient(CONFIG),
        model=MODEL_JSON,
        tokens=TOKENS,
        susceptibility=PER_TOKEN["susceptibility"],
        control=PER_TOKEN["control"],
    output:
        S4_6_SEARCH,
    params:
        code=code(f"{S4_6_CODE}/bimodal_search.py"),
        settings=settings("two_layer.per_token.control_checkpoints"),
    log:
        f"{R}/logs/bimodal_search_tokens.log",
    benchmark:
        f"{R}/benchmarks/bimodal_search_tokens.tsv"
    shell:
        "{PY} {S4_6_CODE}/bimodal_search.py --results {R} 2>&1 | tee {log}"


rule bimodal_cases:
    input:
        config=ancient(CONFIG),
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        susceptibility=PER_TOKEN["susceptibility"],
        control=PER_TOKEN["control"],
    output:
        S4_6_CASES,
        f"{S4_6}/measured.json",
        f"{S4_6}/sensitivity.parquet",
    params:
        code=code(f"{S4_6_CODE}/bimodal_cases.py"),
        settings=settings("two_layer.per_token.control_checkpoints"),
    log:
        f"{R}/logs/bimodal_cases.log",
    benchmark:
        f"{R}/benchmarks/bimodal_cases.tsv"
    shell:
        "{PY} {S4_6_CODE}/bimodal_cases.py --results {R} 2>&1 | tee {log}"


rule bimodal_page:
    input:
        template=f"{S4_6_CODE}/bimodal_search.html.jinja",
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        search=S4_6_SEARCH,
    output:
        table("bimodal_tests"),
        table("bimodal_search"),
        page("bimodal_search"),
    params:
        code=code(f"{S4_6_CODE}/bimodal_page.py", "templates"),
    log:
        f"{R}/logs/bimodal_page.log",
    benchmark:
        f"{R}/benchmarks/bimodal_page.tsv"
    shell:
        "{PY} {S4_6_CODE}/bimodal_page.py --results {R} 2>&1 | tee {log}"


section(
    "s4_6",
    results=[*S4_6_SEARCH, *S4_6_CASES, f"{S4_6}/measured.json", f"{S4_6}/sensitivity.parquet"],
    figures=S4_6_FIGURES,
    tables=["bimodal_tests", "bimodal_search"],
    pages=["bimodal_search"],
)


# One job draws them all: importing the plotting library takes longer than drawing a figure.
rule draw_bimodal_tokens:
    input:
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        search=S4_6_SEARCH,
        cases=S4_6_CASES,
        style="figures/style.mplstyle",
    output:
        [fig(name) for name in S4_6_FIGURES],
    params:
        code=code("figures/bimodal_tokens.py"),
        names=" ".join(S4_6_FIGURES),
    log:
        f"{R}/logs/draw_bimodal_tokens.log",
    benchmark:
        f"{R}/benchmarks/draw_bimodal_tokens.tsv"
    shell:
        "{PY} figures/bimodal_tokens.py --results {R} --figure {params.names} 2>&1 | tee {log}"
