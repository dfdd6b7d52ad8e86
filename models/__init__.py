"""The networks and their sampling, and how other people's weights become them."""
