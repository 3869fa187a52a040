"""Networks from (image, vector, context) to image. They know no sigma and no files."""
