"""What a run is: frozen, checked settings and the registry of named configs."""
