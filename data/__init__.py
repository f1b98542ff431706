"""Photographs, faces and views: everything about pictures and their labels."""
