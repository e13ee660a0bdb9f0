"""Drop-ins: the calls of Xplique, keras-explainable, Captum and PAIR's saliency, on an ONNX file.

Arrays come in and arrays come out, as the originals have them; only the import and the model change.
Arguments that gbp cannot honour are refused by name.  It may import what gbp exports, the errors, what
makes pictures, and methods.
"""
