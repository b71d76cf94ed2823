"""The edge box: opens artifacts, infers and judges with numpy and one runtime, never with torch."""
