"""Charts as SVG, drawn by the server: they need no script, and stand in files of their own.

Pure functions of data: the same data give the same bytes. Colours, fonts and strokes are those of
`static/css/charts.css`, over the tokens of `base.css`.
"""
