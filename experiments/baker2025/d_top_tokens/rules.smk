# Baker et al. 1 (Figure 1), Appendices D and E, and section 6's polarity: per-token
# susceptibilities -> rankings -> lists, tables, figures, claims.

D_TOP = f"{R}/baker2025/d_top_tokens"
D_TOP_CODE = "experiments/baker2025/d_top_tokens"
D_TOP_FIGURES = ["fig30", "table3", "polarity"]
D_TOP_RANKINGS = [f"{D_TOP}/{table}.parquet" for table in ("top", "lists", "overlap", "counts")]
D_TOP_MEASURED = [f"{D_TOP}/{table}.parquet" for table in ("polarity", "table3", "candidates")]


rule rank_tokens:
    input:
        config=ancient(CONFIG),
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        susceptibility=PER_TOKEN["susceptibility"],
        control=PER_TOKEN["control"],
    output:
        D_TOP_RANKINGS,
        f"{D_TOP}/fig1.highlight.json",
        f"{D_TOP}/fig1_parts.highlight.json",
    params:
        code=code(f"{D_TOP_CODE}/rank_tokens.py"),
        settings=settings("two_layer.per_token.control_checkpoints"),
    log:
        f"{R}/logs/rank_tokens.log",
    benchmark:
        f"{R}/benchmarks/rank_tokens.tsv"
    shell:
        "{PY} {D_TOP_CODE}/rank_tokens.py --results {R} 2>&1 | tee {log}"


rule top_tokens_claims:
    input:
        config=ancient(CONFIG),
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        susceptibility=PER_TOKEN["susceptibility"],
        control=PER_TOKEN["control"],
        rankings=D_TOP_RANKINGS,
    output:
        D_TOP_MEASURED,
        f"{D_TOP}/measured.json",
        f"{D_TOP}/sensitivity.parquet",
    params:
        code=code(f"{D_TOP_CODE}/top_tokens_claims.py"),
        settings=settings("two_layer.per_token.control_checkpoints"),
    log:
        f"{R}/logs/top_tokens_claims.log",
    benchmark:
        f"{R}/benchmarks/top_tokens_claims.tsv"
    shell:
        "{PY} {D_TOP_CODE}/top_tokens_claims.py --results {R} 2>&1 | tee {log}"


rule top_tokens_page:
    input:
        template=f"{D_TOP_CODE}/top_tokens.html.jinja",
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        rankings=D_TOP_RANKINGS,
        measured=D_TOP_MEASURED,
    output:
        table("top_tokens"),
        table("table3"),
        table("polarity"),
        page("top_tokens"),
    params:
        code=code(f"{D_TOP_CODE}/top_tokens_page.py", "templates"),
    log:
        f"{R}/logs/top_tokens_page.log",
    benchmark:
        f"{R}/benchmarks/top_tokens_page.tsv"
    shell:
        "{PY} {D_TOP_CODE}/top_tokens_page.py --results {R} 2>&1 | tee {log}"


section(
    "d_top_tokens",
    results=[
        *D_TOP_RANKINGS,
        *D_TOP_MEASURED,
        f"{D_TOP}/measured.json",
        f"{D_TOP}/sensitivity.parquet",
    ],
    figures=["fig1", *D_TOP_FIGURES],
    tables=["top_tokens", "table3", "polarity"],
    pages=["fig1", "top_tokens"],
)


rule draw_fig1:
    input:
        spec=f"{D_TOP}/fig1.highlight.json",
        parts=f"{D_TOP}/fig1_parts.highlight.json",
        style="figures/style.mplstyle",
    output:
        fig("fig1"),
        page("fig1"),
    params:
        code=code("figures/highlight.py", "templates"),
        out=f"{R}/figures/fig1",
        page=page("fig1"),
    log:
        f"{R}/logs/draw_fig1.log",
    benchmark:
        f"{R}/benchmarks/draw_fig1.tsv"
    shell:
        "{PY} figures/highlight.py --results {R} --spec {input.spec} --out {params.out}"
        " 2>&1 | tee {log} && "
        "{PY} figures/highlight.py --results {R} --spec {input.parts} --page {params.page}"
        " 2>&1 | tee -a {log}"


# One job draws them all: importing the plotting library takes longer than drawing a figure.
rule draw_top_tokens:
    input:
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        counts=f"{D_TOP}/counts.parquet",
        measured=D_TOP_MEASURED,
        style="figures/style.mplstyle",
    output:
        [fig(name) for name in D_TOP_FIGURES],
    params:
        code=code("figures/top_tokens.py"),
        names=" ".join(D_TOP_FIGURES),
    log:
        f"{R}/logs/draw_top_tokens.log",
    benchmark:
        f"{R}/benchmarks/draw_top_tokens.tsv"
    shell:
        "{PY} figures/top_tokens.py --results {R} --figure {params.names} 2>&1 | tee {log}"
