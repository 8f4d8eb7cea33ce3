//! Programs that use metal-candle; see the files beside this one.
