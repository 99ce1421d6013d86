"""S&I-C: from images to readings (`readings`), to a fit (`fit`), to a score (`score`).

In flow a model and training images; out flows a `Plan`, made by `method`. `channels` says which
channels are read. Fit and score know nothing of the network, so that readings taken once serve any
number of fits.
"""
