"""The experiment behind tools/quantise.py: nets on scikit-learn's digits, rescaled in several ways, rounded and measured."""
