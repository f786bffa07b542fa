"""Holds `analyze`, `Plan` and `canonical` for users; a face, whose work is done in rescale and below.

In: a module and the options of `fxenorm.analyze`.
Out: a `Plan`.
Imports: rescale, verify, text, symmetry, trace and what these import; never inspect or integrations.

For users: fxenorm works in four steps.

1. **Trace.** A run with fake values turns the model into a graph of ATen operators, in train and in eval mode, at two sizes. No
   activation is allocated; models on the meta device work. ``torch.export`` takes over where sizes depend on data or forward
   calls branches and loops. If both fail, the model is run once on your inputs, and that run is recorded.
2. **Propagate.** Every operator has a scale rule. If its inputs are rescaled like this, how does its output change? Which
   conditions must hold? ``relu`` passes scales on, ``add`` ties the scales of its terms, a convolution starts new ones. An
   operator without a rule is a barrier: it stops every rescaling, and is reported. No value of a weight is read.
3. **Solve.** The remaining equations are solved exactly, in integers. The answer is a basis of all rescalings of this kind: each
   entry of each parameter is multiplied by exp(integers · log-scales).
4. **Plan.** The p-norm of the weights is convex in the log-scales. One cycle reads all weights, computes one factor for each
   channel, sqrt(out / in) in a plain chain, and rescales weights and optimizer state in place. It never increases the norm.
"""
