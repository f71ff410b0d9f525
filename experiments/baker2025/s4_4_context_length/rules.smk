# Baker et al. 4.4 and appendix G: per-token susceptibilities -> curves by context length, repeats.

S4_4 = f"{R}/baker2025/s4_4_context_length"
S4_4_CODE = "experiments/baker2025/s4_4_context_length"
S4_4_FIGURES = ["fig33", "fig34", "context_length_parts"]
S4_4_BY_HEAD = ["variance_by_head", "repeats_by_head"]
S4_4_CURVES = [f"{S4_4}/{table}.parquet" for table in ("curves", "heads", "shared")]
S4_4_REPEATS = [
    f"{S4_4}/repeats.parquet",
    f"{S4_4}/example.parquet",
    f"{S4_4}/fig8.highlight.json",
]


rule length_curves:
    input:
        config=ancient(CONFIG),
        heads=f"{R}/structure/heads.parquet",
        per_token=[*PER_TOKEN["susceptibility"], *PER_TOKEN["control"]],
    output:
        S4_4_CURVES,
    params:
        code=code(f"{S4_4_CODE}/length_curves.py"),
    log:
        f"{R}/logs/length_curves.log",
    benchmark:
        f"{R}/benchmarks/length_curves.tsv"
    shell:
        "{PY} {S4_4_CODE}/length_curves.py --results {R} 2>&1 | tee {log}"


rule repeated_sequences:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        per_token=[*PER_TOKEN["susceptibility"], *PER_TOKEN["control"]],
    output:
        S4_4_REPEATS,
    params:
        code=code(f"{S4_4_CODE}/repeats.py"),
    log:
        f"{R}/logs/repeated_sequences.log",
    benchmark:
        f"{R}/benchmarks/repeated_sequences.tsv"
    shell:
        "{PY} {S4_4_CODE}/repeats.py --results {R} 2>&1 | tee {log}"


rule context_length_claims:
    input:
        config=ancient(CONFIG),
        heads=f"{R}/structure/heads.parquet",
        per_token=[*PER_TOKEN["susceptibility"], *PER_TOKEN["control"]],
        shared=f"{S4_4}/shared.parquet",
    output:
        f"{S4_4}/measured.json",
        f"{S4_4}/sensitivity.parquet",
    params:
        code=code(f"{S4_4_CODE}/context_length_claims.py"),
    log:
        f"{R}/logs/context_length_claims.log",
    benchmark:
        f"{R}/benchmarks/context_length_claims.tsv"
    shell:
        "{PY} {S4_4_CODE}/context_length_claims.py --results {R} 2>&1 | tee {log}"


section(
    "s4_4",
    results=[
        *S4_4_CURVES,
        *S4_4_REPEATS,
        f"{S4_4}/measured.json",
        f"{S4_4}/sensitivity.parquet",
    ],
    figures=[*S4_4_FIGURES, *S4_4_BY_HEAD, "fig8"],
    pages=["fig8"],
)


# One job draws them all, as in section 4.1.
rule draw_context_length:
    input:
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        tables=S4_4_CURVES,
        style="figures/style.mplstyle",
    output:
        [fig(name) for name in S4_4_FIGURES],
    params:
        code=code("figures/context_length.py"),
        names=" ".join(S4_4_FIGURES),
    log:
        f"{R}/logs/draw_context_length.log",
    benchmark:
        f"{R}/benchmarks/draw_context_length.tsv"
    shell:
        "{PY} figures/context_length.py --results {R} --figure {params.names} 2>&1 | tee {log}"


rule draw_context_length_heads:
    input:
        model=MODEL_JSON,
        tokens=TOKENS,
        heads=f"{R}/structure/heads.parquet",
        tables=[*S4_4_CURVES, f"{S4_4}/repeats.parquet"],
        style="figures/style.mplstyle",
    output:
        [fig(name) for name in S4_4_BY_HEAD],
    params:
        code=code("figures/context_length_heads.py"),
        names=" ".join(S4_4_BY_HEAD),
    log:
        f"{R}/logs/draw_context_length_heads.log",
    benchmark:
        f"{R}/benchmarks/draw_context_length_heads.tsv"
    shell:
        "{PY} figures/context_length_heads.py --results {R} --figure {params.names}"
        " 2>&1 | tee {log}"


rule draw_repeated_sequence:
    input:
        spec=f"{S4_4}/fig8.highlight.json",
        style="figures/style.mplstyle",
    output:
        fig("fig8"),
        page("fig8"),
    params:
        code=code("figures/highlight.py", "templates"),
        out=f"{R}/figures/fig8",
        page=page("fig8"),
    log:
        f"{R}/logs/draw_repeated_sequence.log",
    benchmark:
        f"{R}/benchmarks/draw_repeated_sequence.tsv"
    shell:
        "{PY} figures/highlight.py --results {R} --spec {input.spec} --out {params.out}"
        " --page {params.page} 2>&1 | tee {log}"
