"""The generator as people write it: the same function of the same weights, in Keras's own layers."""

import keras
import numpy as np
from keras import layers

from training.model.networks import BLUR, UpsampleConv


def in_stock_layers(generator: keras.Model) -> keras.Model:
    """Return a copy of `generator` (of `networks.build_generator`) whose layers are all Keras's.

    What `UpsampleConv` does as one transposed convolution is nearest upsampling here, for a smooth one BLUR, and a
    convolution of 3x3. Pictures are the same up to rounding.
    """
    x = images = generator.input
    for layer in generator.layers[1:]:
        if isinstance(layer, UpsampleConv):
            x = layers.UpSampling2D()(x)
            padding = "same"
            if layer.smooth:
                x = layers.ZeroPadding2D(2)(x)  # BLUR reaches a pixel beyond the border, and the convolution, too
                kernel = np.tile(BLUR[..., None, None], (1, 1, x.shape[-1], 1))
                blur = keras.initializers.Constant(kernel)
                x = layers.DepthwiseConv2D(3, use_bias=False, trainable=False, depthwise_initializer=blur)(x)
                padding = "valid"
            convolution = layers.Conv2D(layer.filters, 3, padding=padding, use_bias=False, name=layer.name)
            x = convolution(x)
            convolution.set_weights(layer.get_weights())
        else:
            kind = layers.BatchNormalization if isinstance(layer, layers.BatchNormalization) else type(layer)
            copy = kind.from_config(layer.get_config())
            x = copy(x)
            copy.set_weights(layer.get_weights())
        images = x
    return keras.Model(generator.input, images, name="plain")
