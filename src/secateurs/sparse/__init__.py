"""Single weights: masks, saliencies, dead units."""
