"""What each family's configuration and tensor names mean."""
