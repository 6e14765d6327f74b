"""comparison.html: the same curves to look into, in one file that needs neither network nor server."""

import html

import pandas as pd

from cifar10lab.comparison.curves import COLOURS, LINES, Curve, curves_of, places, stand_in


def comparison_page(runs: pd.DataFrame) -> bytes:
    """Losses and accuracies of all runs, over epochs or seconds, linear or logarithmic; values under the pointer."""
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    curves, titles = curves_of(runs), ["loss (cross-entropy)", "accuracy (%)"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.06)
    for number, curve in enumerate(curves):
        add_lines(figure, curve, [*COLOURS, *qualitative.Dark24][number % 32])
    buttons = []
    for over, name in (("epochs", "epoch"), ("seconds", "seconds of training")):
        x = [places(curve, line, over) for curve in curves for line in LINES]
        for kind in ("linear", "log"):
            layout = {"xaxis.title.text": name, "xaxis2.title.text": name, "xaxis.type": kind, "xaxis2.type": kind}
            buttons.append({"label": f"{name}, {kind}", "method": "update", "args": [{"x": x}, layout]})
    place = {"x": 0, "xanchor": "left", "y": 1.08, "yanchor": "bottom"}
    menus = [{"type": "buttons", "direction": "right", "buttons": buttons, **place}]
    text = "full: test, dashed: training. A click on a run below hides it, a double click singles it out."
    title = {"text": stand_in(runs) + text, "font": {"size": 14}, "y": 0.99, "yanchor": "top", "yref": "container"}
    height, margin = 560 + 24 * len(curves), {"t": 130, "b": 80 + 24 * len(curves), "l": 60, "r": 30}  # pixels
    figure.update_layout(template="plotly_white", title=title, updatemenus=menus, height=height, margin=margin)
    legend = {"title": {"text": "test accuracy at the end"}, "yanchor": "top", "x": 0, "y": -60 / 350}
    figure.update_layout(legend=legend).update_xaxes(title_text="epoch")
    return figure.to_html(include_plotlyjs=True, config={"displaylogo": False}).encode()


def add_lines(figure: object, curve: Curve, colour: str) -> None:
    """A row's four lines, over epochs."""
    from plotly.graph_objects import Scatter

    run, label = (html.escape(text, quote=False) for text in (curve.name, curve.label))  # plotly reads tags in them
    for name in LINES:
        kind, what = name.split("_")
        digits = 4 if what == "loss" else 2
        around = f" ± %{{customdata:.{digits}f}}" if curve.seeds > 1 else ""
        line = {"color": colour, "dash": "solid" if kind == "test" else "dash", "width": 2}
        hover = f"{run}<br>{kind} {what} at %{{x:.6g}}: %{{y:.{digits}f}}{around}<extra></extra>"
        style = {"name": label, "legendgroup": label, "showlegend": name == "test_loss"}
        style |= {"mode": "lines+markers" if len(curve.mean) == 1 else "lines", "hovertemplate": hover}
        values = {"x": places(curve, name, "epochs"), "y": curve.mean[name], "customdata": curve.deviation[name]}
        figure.add_trace(Scatter(**values, **style, line=line), 1, 1 if what == "loss" else 2)
