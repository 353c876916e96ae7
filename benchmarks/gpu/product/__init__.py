"""Checks that run the whole product, Ray and vLLM included."""
