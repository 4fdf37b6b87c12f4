"""The HTTP gateway: one image per URL, the web page and the API's description."""
