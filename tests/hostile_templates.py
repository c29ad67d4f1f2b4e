"""Templates that reach out of the sandbox or run away, by name: every one must be refused."""

SETUP = "{% set x = 'a' * 1000000 %}"
LIST = "{% set x = range(99999) | list %}"


def _doubling(start, step, end="{{ ns.x }}"):
    loop = "{% for i in range(100) %}{% set ns.x = " + step + " %}{% endfor %}"
    return "{% set ns = namespace(x=" + start + ") %}" + loop + end


REACHING_OUT = {
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'x' as y %}",
    "from": "{% from 'x' import y %}",
    "extends": "{% extends 'a' %}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "item": "{{ ''['__class__'] }}",
    "attr": "{{ '' | attr('__class__') }}",
    "map": "{{ [''] | map(attribute='__class__') | list }}",
    "init": "{{ messages.__init__.__globals__ }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "self": "{{ self.__dict__ }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m._func }}",
    "format": "{{ '{0.__class__}'.format(messages) }}",
    "format_map": "{{ '{x.__class__}'.format_map({'x': messages}) }}",
    "namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "namespace2": "{% set ns = namespace(__html__=1) %}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update({'role': 'x'}) }}",
    "encode": "{{ 'x'.encode() }}",
    "open": "{{ open('/etc/passwd') }}",
    "lipsum": "{{ lipsum(n=9) }}",
    "pprint": "{{ messages | pprint }}",
}

RUNNING_AWAY = {
    "range": "{% for i in range(10**12) %}{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "repeat": "{{ 'a' * 10**10 }}",
    "repeat_list": "{{ [1] * 10**10 }}",
    "power": "{{ 9**(9**9) }}",
    "square": _doubling("3", "ns.x * ns.x"),
    "concat": _doubling("'ab'", "ns.x ~ ns.x"),
    "add": _doubling("'ab'", "ns.x + ns.x"),
    "set_block": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "list": _doubling("'ab'", "[ns.x, ns.x]"),
    "tuple": _doubling("'ab'", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
    "dict": _doubling("'ab'", "dict(a=ns.x, b=ns.x)", "{{ ns.x | tojson }}"),
    "namespaces": _doubling("'ab'", "namespace(a=[ns.x, ns.x])"),
    "cycle": "{% set ns = namespace() %}{% set ns.x = ns %}{{ [ns] }}",
    "varargs": "{% macro m(n) %}{% if n %}{{ m(n - 1, varargs, varargs) }}"
    "{% else %}{{ varargs }}{% endif %}{% endmacro %}{{ m(100, 1, 2) }}",
    "fibonacci": "{% macro f(n) %}{% if n %}{{ f(n - 1) * 2 }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "recursive_loop": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "replace": SETUP + "{{ x | replace('a', x) }}",
    "replace_method": SETUP + "{{ x.replace('a', x) }}",
    "join": SETUP + "{{ range(99999) | join(x) }}",
    "join_method": SETUP + "{{ x.join(range(9999) | map('string')) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "center_method": "{{ 'a'.center(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "width_format": "{{ '{:1000000000}'.format(1) }}",
    "width_nested": "{{ '{:{}}'.format(1, 10**9) }}",
    "width_percent": "{{ '%1000000000d' % 1 }}",
    "width_star": "{{ '%*d' % (10**9, 1) }}",
    "width_filter": "{{ '%1000000000d' | format(1) }}",
    "strftime": "{{ strftime_now('%1000000000Y') }}",
    "indent": "{% set x = '\\n' * 1000000 %}{{ x | indent(1000000) }}",
    "json": "{{ [1] | tojson(indent=10**9) }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "sum": "{{ [[1]] | sum(start=[]) }}",
    "strip": "{% set x = 'a' * 2000000 %}{{ x.strip('b' * 1000000 ~ 'a') }}",
    "rfind": "{% set x = 'a' * 2000000 %}{{ x.rfind('b' + 'a' * 1000000) }}",
    "static": "{% macro m() %}" + "x" * 50000 + "{% endmacro %}"
    "{% for i in range(99999) %}{% set a = m() %}{% endfor %}",
    "long": "{{ 'x' }}" * 9000,
    "parentheses": "{{ " + "(" * 10000 + " }}",
    "ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "dots": "{{ a" + ".b" * 12000 + " }}",
    "additions": "{{ 1" + "+1" * 12000 + " }}",
    "compares": LIST + "{% set y = range(99999) | list %}" + "{{ x==y }}" * 6000,
    "outputs": SETUP + "{{x}}" * 12000,
    "buffered": SETUP + "{% set y %}" + "{{x}}" * 12000 + "{% endset %}",
    "wide_concat": SETUP + "{{ " + "~".join("x" * 12000) + " }}",
    "wide_list": SETUP + "{% set y = [" + ",".join("x" * 12000) + "] %}",
    "straight": "{% for i in range(99999) %}" + "{% set a=b %}" * 4000 + "{% endfor %}",
    "hash": "{% set x = (range(99999) | list | string,) * 10 %}" + "{{ {x:1} }}" * 6000,
    "digits": "{{ " + "9" * 10000 + " }}",
    "sort": "{% for i in range(99999) %}{{ range(9999) | sort }}{% endfor %}",
}
