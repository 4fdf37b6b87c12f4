"""The HTTP gateway: images, the web page and the API's description."""
