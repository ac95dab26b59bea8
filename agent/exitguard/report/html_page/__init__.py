"""What the HTML report is made of: a template, its style and its script, the charts, and the details that the script unfolds."""
