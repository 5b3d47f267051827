"""The style sheet of the report: light and dark, printable, colours that colour-blind readers tell apart."""

from __future__ import annotations

_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7a3fb5", "#5b5b5b")
_DARK = ("#4aa8e0", "#ff8a3d", "#2fcf9f", "#e79bc4", "#e0b93a", "#8fd0ff", "#b98af0", "#b0b0b0")


def _palette(colours: tuple[str, ...]) -> str:
    return "".join(f"--c{i}:{colour};" for i, colour in enumerate(colours))


_CLASSES = "".join(
    f".s{i}{{stroke:var(--c{i})}}.f{i}{{fill:var(--c{i})}}.b{i}{{background:var(--c{i})}}" for i in range(len(_LIGHT))
)

STYLE = (
    f"""
:root{{--bg:#fbfbfa;--card:#fff;--ink:#1b1d21;--soft:#667;--line:#dfe1e6;--yes:#0a7a4f;--no:#b3261e;--open:#8a6d00;
--base:#7b7f8a;{_palette(_LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{--bg:#14161a;--card:#1c1f25;--ink:#e8e9ec;--soft:#9aa0ac;--line:#333842;
--yes:#46c795;--no:#ff8a80;--open:#e0b93a;--base:#9196a3;{_palette(_DARK)}}}}}
"""
    + _CLASSES
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1240px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0;overflow-wrap:anywhere}
h2{font-size:19px;margin:0 0 10px;overflow-wrap:anywhere}
h3{font-size:15px;margin:22px 0 6px}
.meta{color:var(--soft);margin:2px 0 0;font-size:13px;overflow-wrap:anywhere}
nav{margin:14px 0 0;display:flex;gap:8px;flex-wrap:wrap}
nav a{border:1px solid var(--line);border-radius:14px;padding:2px 12px;color:inherit;text-decoration:none;
font-size:13px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px 22px;margin-top:18px}
figure{margin:0}
.wide>svg{min-width:760px}
svg{display:block;width:100%;height:auto;font-family:inherit}
.about{margin:-8px 0 10px}
.findings{margin:0 0 14px;padding-left:18px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:6px 8px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
thead th{color:var(--soft);font-weight:600;white-space:normal;vertical-align:bottom}
th:first-child,tbody th{text-align:left;font-weight:600}
tbody th{white-space:normal;min-width:170px;overflow-wrap:anywhere}
th small{display:block;color:var(--soft);font-weight:400;margin-left:18px}
td small{display:block;color:var(--soft)}
tr:not(.learned) td{color:var(--soft)}
.matrix tr td,.matrix td small{color:var(--ink)}
th i,.chip i{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:8px}
.b-base{background:var(--base)}
.mark{border:1px solid var(--open);color:var(--open);border-radius:9px;padding:0 7px;font-size:11px;font-weight:400;
white-space:nowrap}
td.yes{color:var(--yes)!important;font-weight:600}td.no{color:var(--no)!important}td.open{color:var(--open)!important}
.matrix{width:auto}
.matrix td.win{background:color-mix(in srgb,var(--c2) calc(var(--a)*45%),transparent)}
.matrix td.loss{background:color-mix(in srgb,var(--c1) calc(var(--a)*45%),transparent)}
.matrix td{text-align:center}.matrix thead th{max-width:150px;overflow-wrap:anywhere;text-align:center}
.legend{margin:4px 0 8px;font-size:13px}.chip{margin-right:18px;display:inline-block;overflow-wrap:anywhere}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:14px 22px}
@media (max-width:480px){.panels{grid-template-columns:1fr}}
details{margin-top:14px}summary{cursor:pointer;color:var(--soft)}
pre{overflow:auto;font-size:12px;background:var(--bg);padding:10px;border-radius:6px;max-height:420px}
code{font-size:12px;overflow-wrap:anywhere}
.origins{padding-left:18px;font-size:13px}
svg text{fill:var(--ink);font-size:12px}
svg .title{font-weight:600;font-size:13px}
svg .tick,svg .note{fill:var(--soft);font-size:11px}
svg .level-name{fill:var(--soft);font-size:10.5px;stroke:var(--card);stroke-width:3;paint-order:stroke}
svg .end{text-anchor:end}svg .mid{text-anchor:middle}
.grid{stroke:var(--line);stroke-width:1}
.level{stroke:var(--base);stroke-width:1.2;stroke-dasharray:5 4}
.base{stroke:var(--base)}.base-fill{fill:var(--base)}
.band{opacity:.16;stroke:none}
.thin{fill:none;stroke-width:.8;opacity:.4}.thick{fill:none;stroke-width:2.2;stroke-linejoin:round}
.dashed{stroke-dasharray:6 3}
.interval{stroke-width:2.4;stroke-linecap:round}.seed{stroke-width:1.2;opacity:.55}
@media print{section{break-inside:avoid;border:none}body{background:#fff}}
"""
)
