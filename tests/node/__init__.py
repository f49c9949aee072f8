"""The public OpenFeature clients for JavaScript, under Node."""
