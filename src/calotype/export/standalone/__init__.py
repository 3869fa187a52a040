"""Files that are copied into bundles. They stand alone: nothing of them imports Calotype."""
