"""Pure linen modules over the batch dict."""
