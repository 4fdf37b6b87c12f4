"""The generator in Keras's own layers, with the same weights."""

import keras
import numpy as np
from keras import layers

from training.model.networks import BLUR, UpsampleConv


def in_stock_layers(generator: keras.Model) -> keras.Model:
    """Return a copy of `generator` (of `networks.build_generator`) in Keras's own layers.

    `UpsampleConv`, one transposed convolution, becomes nearest upsampling, BLUR for a smooth one, and a 3x3
    convolution. Images are the same up to rounding.
    """
    x = images = generator.input
    for layer in generator.layers[1:]:
        if isinstance(layer, UpsampleConv):
            x = layers.UpSampling2D()(x)
            padding = "same"
            if layer.smooth:
                x = layers.ZeroPadding2D(2)(x)  # BLUR and the convolution each reach one pixel beyond the border
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
