"""Images in: decoding, preprocessing, labelled sets. numpy and Pillow."""
