//! What templates write, compared with what transformers' Jinja writes for the same source, and what they may not do.

use serde_json::json;

use super::*;

fn render(source: &str, context: &serde_json::Value) -> Result<String> {
    let tokens = vec![("bos_token".to_string(), "<s>".to_string())];
    let request = ChatRequest {
        messages: &context["messages"],
        tools: Some(&context["tools"]),
        add_generation_prompt: true,
        date: Date::from_unix(1_721_952_000),
    };
    ChatTemplate::new(source, tokens)?.render(&request)
}

#[test]
fn templates_render_as_in_python() {
    let context = json!({
        "messages": [{"role": "user", "content": "  a <b> & 'c' é\n", "n": 1.0, "t": true, "z": null}],
        "tools": [{"name": "f", "arguments": {"x": 1, "a": [1, 2.5]}}],
    });
    for (source, expected) in [
        ("{{ bos_token }}{% for m in messages %}\n  {{ m.role }}\n{% endfor %}\n", "<s>  user\n"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{{ messages[0].content.strip() }}|{{ messages[0]['content'] | trim }}", "a <b> & 'c' é|a <b> & 'c' é"),
        ("{{ messages[0].content | tojson }}", "\"  a <b> & 'c' é\\n\""),
        ("{{ tools[0] | tojson }}", r#"{"name": "f", "arguments": {"x": 1, "a": [1, 2.5]}}"#),
        (
            "{{ tools[0].arguments | tojson(indent=2, sort_keys=true) }}",
            "{\n  \"a\": [\n    1,\n    2.5\n  ],\n  \"x\": 1\n}",
        ),
        (
            "{{ messages | tojson(separators=(',', ':'), ensure_ascii=true) }}",
            r#"[{"role":"user","content":"  a <b> & 'c' \u00e9\n","n":1.0,"t":true,"z":null}]"#,
        ),
        ("{{ tools[0] }}", "{'name': 'f', 'arguments': {'x': 1, 'a': [1, 2.5]}}"),
        ("{{ messages[0].t }} {{ messages[0].z }} {{ messages[0].n }} {{ nothing }}", "True None 1.0 "),
        ("{{ [\"it's\", 'a\\nb'] }}", "[\"it's\", 'a\\nb']"),
        ("{% for k, v in tools[0].arguments.items() %}{{ k }}={{ v }};{% endfor %}", "x=1;a=[1, 2.5];"),
        ("{{ tools[0].get('name') }}{{ tools[0].get('no', 7) }}{{ tools[0].get('no') }}", "f7None"),
        ("{{ 'a,b,c'.split(',', 1) }}{{ 'a b'.split()[-1] }}{{ ', '.join(['x', 'y']) }}", "['a', 'b,c']bx, y"),
        ("{{ 'Ab'.startswith(('x', 'A')) }}{{ 'xxax'.strip('x') }}{{ 'aXb'.lower().title() }}", "TrueaAxb"),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        ("{%- generation -%} x {%- endgeneration -%} y", "xy"),
        ("{{ strftime_now('%d %b %Y') }}{{ add_generation_prompt }}", "26 Jul 2024True"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{{ 'a' if messages[0].content is string else 'b' }}{{ messages[1:] }}{{ tools is defined }}", "a[]True"),
        ("{{ messages[0].n | string }}{{ true | string }}", "1.0True"),
        ("{{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ -7 % 3 }}", "3 3.5 8 2"),
        ("{{ (1, 'a') }}{{ ('a',) }}{{ {1: none} }}", "(1, 'a')('a',){1: None}"),
        ("{{ tools | length }}{{ messages | map(attribute='role') | join(',') }}", "1user"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ 'abc'[1:] }}{{ 'abc'[::-1] }}{{ messages[::-1][0].role }}", "bccbauser"),
        ("{{ nothing is not none }}{{ 3 in [1,2,3] }}{{ {} | tojson(indent=4) }}", "TrueTrue{}"),
        ("{{ 'A B'.replace(' ', '') }}{{ 'x' * 3 }}{{ [1] + [2] }}", "ABxxx[1, 2]"),
        ("{{ 'a\r\nb\n'.splitlines() }}{{ 'a/b/c'.rsplit('/', 1) }}", "['a', 'b']['a/b', 'c']"),
    ] {
        assert_eq!(render(source, &context).unwrap(), expected, "{source}");
    }
}

#[test]
fn a_hostile_or_broken_template_is_an_error_that_comes_soon() {
    let context = json!({"messages": [], "tools": null});
    for source in [
        "{% for",
        "{{ raise_exception('no system prompt') }}",
        "{{ messages.pop() }}",
        "{{ 'a'.encode('utf-8') }}",
        "{{ nothing.at.all }}",
        "{{ strftime_now('%Q') }}",
        "{% include 'tokenizer.json' %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ] {
        let error = render(source, &context).expect_err(source);
        assert_eq!(error.exit_code(), scout_core::ExitCode::BadData, "{source}");
    }
}

#[test]
fn the_message_of_a_template_reaches_the_reader() {
    let error = render("{{ raise_exception('only two turns') }}", &json!({})).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap();
    assert!(cause.to_string().contains("only two turns"), "{cause}");
}
