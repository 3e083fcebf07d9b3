"""`helix-mq bench report`: result files as one page."""
