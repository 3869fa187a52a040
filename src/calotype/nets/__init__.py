"""Networks from (image, vector, context) to image. None takes a sigma."""
